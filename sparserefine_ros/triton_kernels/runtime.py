# SPDX-License-Identifier: Apache-2.0
"""Where Triton's kernels run: on a CUDA GPU, or in Triton's interpreter on the CPU, for tests."""

from __future__ import annotations

import contextlib
import functools
import os
from contextlib import AbstractContextManager
from typing import Final

import torch

from sparserefine_ros.errors import BackendError

# Triton looks at it when a kernel is defined, so it must be set before this room is imported.
INTERPRETER_VARIABLE: Final = "TRITON_INTERPRET"


def _asked_for_interpreter() -> bool:
    return os.environ.get(INTERPRETER_VARIABLE, "").lower() in {"1", "true", "yes", "on"}


# How the kernels of this process were defined.
INTERPRETED: Final = _asked_for_interpreter()


def suits(device: torch.device) -> bool:
    """Whether kernels run on tensors of that device; the interpreter takes any, while asked for."""
    return (INTERPRETED and _asked_for_interpreter()) or device.type == "cuda"


def check_device(device: torch.device) -> None:
    """Refuse devices that kernels cannot run on.

    Args:
        device: where the tensors are.

    Raises:
        BackendError: no CUDA device in this machine, or the tensors are elsewhere.
    """
    if suits(device):
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


def launching_on(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: make it that of the tensor."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs a CUDA device runs side by side, at least."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def power_of_two(value: int, *, least: int = 1) -> int:
    """The smallest power of two that is not below either."""
    return max(least, 1 << (max(value, 1) - 1).bit_length())
