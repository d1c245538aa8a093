# SPDX-License-Identifier: Apache-2.0
"""Where Triton's kernels run: on a CUDA GPU, or in Triton's interpreter on the CPU, for tests."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from typing import Final

import torch

from sparserefine_ros.errors import BackendError

# Triton looks at it when a kernel is defined, so it must be set before this room is imported.
INTERPRETER_VARIABLE: Final = "TRITON_INTERPRET"


def _asked_for_interpreter() -> bool:
    return os.environ.get(INTERPRETER_VARIABLE, "").lower() in {"1", "true", "yes", "on"}


# How the kernels of this process were defined.
INTERPRETED: Final = _asked_for_interpreter()

_launching: Final = threading.RLock()


def suits(device: torch.device) -> bool:
    """Whether kernels run on tensors of that device; the interpreter takes any, while asked for."""
    return (INTERPRETED and _asked_for_interpreter()) or device.type == "cuda"


def check_device(device: torch.device) -> None:
    """Refuse devices that kernels cannot run on.

    Args:
        device: where the tensors are.

    Raises:
        BackendError: no CUDA device in this machine, the tensors are elsewhere, or Triton does not
            start.
    """
    if suits(device):
        if device.type == "cuda":
            _start_driver(device)
        return
    if not torch.cuda.is_available():
        raise BackendError(
            "expected a CUDA device for Triton's kernels, PyTorch finds none; install the NVIDIA "
            "driver and a CUDA build of PyTorch, or choose another sparse engine "
            f"({INTERPRETER_VARIABLE}=1 checks the kernels on the CPU, slowly)"
        )
    raise BackendError(
        f"expected tensors on a CUDA device for Triton's kernels, got {device}; move network and "
        "input there first, as in unet.to('cuda')"
    )


def _start_driver(device: torch.device) -> None:
    """Triton compiles a piece of C when it is first used: let that fail here, not in a frame."""
    import triton

    try:
        triton.runtime.driver.active.get_current_device()
    except Exception as err:  # of many kinds: no compiler, no headers, no driver
        raise BackendError(
            f"expected Triton to start on {device}, it does not ({err}); it needs a C compiler and "
            "Python's headers: apt install gcc python3-dev; or choose sparse engine compiled"
        ) from err


@contextlib.contextmanager
def launching_on(tensor: torch.Tensor) -> Iterator[None]:
    """Triton launches on the current device: make it that of the tensor.

    One thread at a time: the tuner keeps the arguments of a launch in the kernel.
    """
    there = torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
    with _launching, there:
        yield


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs a CUDA device runs side by side, at least."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def power_of_two(value: int, *, least: int = 1) -> int:
    """The smallest power of two that is not below either."""
    return max(least, 1 << (max(value, 1) - 1).bit_length())
