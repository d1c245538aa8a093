# SPDX-License-Identifier: Apache-2.0
"""Finds the compiled kernels that suit this processor.

The package builds one library for each instruction set worth having. Where none was built, for
lack of a compiler, `compiled_kernels` returns None and the callers run on PyTorch and NumPy.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.machinery
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch  # its OpenMP runtime must be in the process before ours is looked for

from sparserefine_ros.errors import BackendError

VARIABLE: Final = "SPARSEREFINE_KERNELS"
PYTORCH: Final = "pytorch"
TRITON: Final = "triton"

# The same as `kInterface` in `kernels.cpp`.
_INTERFACE: Final = 9

_BFLOAT16: Final = "_x86_64_v4_bf16"

# Best first: library, what people call it, and the flags Linux reports for such processors.
_V3_FLAGS: Final = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
_V4_FLAGS: Final = _V3_FLAGS | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_VARIANTS: Final = (
    (_BFLOAT16, "AVX-512 with bfloat16", _V4_FLAGS | {"avx512_bf16"}),
    ("_x86_64_v4", "AVX-512", _V4_FLAGS),
    ("_x86_64_v3", "AVX2", _V3_FLAGS),
    ("_portable", platform.machine(), frozenset[str]()),
)


class Kernels:
    """One loaded library.

    Attributes:
        name: instruction set, for logs and diagnostics.
        has_bfloat16: whether they multiply bfloat16 in one instruction.
        block: output channels whose weights lie side by side, `BLOCK` in `source.h`.
        quad_words: words of a row that are multiplied together where 16 outputs are left, which are
            laid out in quads then, `QUAD_WORDS` in `quads.h`; 0 for kernels without.
        call: the C functions of `kernels.cpp` by their names; they release Python's lock.

    Raises:
        BackendError: the library cannot be loaded, or belongs to another version of this package.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.has_bfloat16 = path.name.startswith(_BFLOAT16)
        try:
            self.call = ctypes.CDLL(str(path))
        except OSError as err:
            raise BackendError(
                f"expected {path} to be a library that loads here, it does not ({err}); install "
                "what it lacks (libgomp: apt install libgomp1), install the package again (pip "
                f"install, or colcon build), or set {VARIABLE}={PYTORCH}"
            ) from err
        interface = getattr(self.call, "sr_interface", None)
        if interface is None or interface() != _INTERFACE:
            raise BackendError(
                f"expected {path} to be built from this version of the package, it is from "
                "another; install the package again (pip install, or colcon build)"
            )
        for function in (
            "sr_block",
            "sr_quad_words",
            "sr_tiles",
            "sr_strided_sites",
            "sr_expand_mask",
            "sr_find_blocks",
        ):
            getattr(self.call, function).restype = ctypes.c_int64
        self.block: int = self.call.sr_block()
        self.quad_words: int = self.call.sr_quad_words()


@functools.cache
def compiled_kernels() -> Kernels | None:
    """The fastest kernels this processor runs, or None.

    The environment variable SPARSEREFINE_KERNELS=pytorch asks for None.

    Raises:
        BackendError: see `Kernels`.
    """
    if os.environ.get(VARIABLE, "").lower() == PYTORCH:
        return None
    return next(runnable_kernels(), None)


@contextlib.contextmanager
def kernels_from(setting: str | None) -> Iterator[None]:
    """Let the environment variable SPARSEREFINE_KERNELS say so meanwhile; None leaves it alone."""
    if setting is None:
        yield
        return
    previous = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = setting
    compiled_kernels.cache_clear()
    try:
        yield
    finally:
        if previous is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = previous
        compiled_kernels.cache_clear()


def runnable_kernels() -> Iterator[Kernels]:
    """All that were built and this processor runs, fastest first."""
    flags = _processor_flags()
    for library, name, needed in _VARIANTS:
        path = _find(library)
        if path is not None and needed <= flags:
            yield Kernels(path, name)


def _find(library: str) -> Path | None:
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"{library}{suffix}"
        if path.is_file():
            return path
    return None


def _processor_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def address(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Pointer to a tensor's first element; keep the tensor alive during the call."""
    return ctypes.c_void_p(tensor.data_ptr())


def integer(value: int) -> ctypes.c_int64:
    """Argument of type int64_t."""
    return ctypes.c_int64(value)
