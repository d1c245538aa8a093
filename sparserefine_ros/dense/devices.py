# SPDX-License-Identifier: Apache-2.0
"""Devices by name, and whether there is such a GPU."""

from __future__ import annotations

import contextlib
import re
import warnings
from contextlib import AbstractContextManager

import torch

from sparserefine_ros.errors import BackendError


def device_kind(device: str) -> str:
    """Without its number: "cpu" or "cuda", or the name itself where it is neither."""
    return "cuda" if re.fullmatch(r"cuda(:\d+)?", device) else device


def require_gpu(device: str, purpose: str) -> torch.device:
    """The CUDA device named "cuda" or "cuda:N".

    Args:
        device: its name.
        purpose: what needs it, for the error.

    Raises:
        BackendError: there is none that PyTorch can use; the text says why.
    """
    index = _index(device)
    missing = _why_no_gpu(index)
    if missing:
        raise BackendError(
            f"expected an NVIDIA GPU ({device}) for {purpose}, found none; {missing}"
        )
    return torch.device("cuda", index)


def find_gpu(device: str) -> torch.device | None:
    """The CUDA device of that name; None where there is none.

    Raises:
        BackendError: it is no name of a CUDA device.
    """
    index = _index(device)
    return None if _why_no_gpu(index) else torch.device("cuda", index)


def on_gpu(device: torch.device | None) -> AbstractContextManager[object]:
    """What runs inside takes this GPU for the current one."""
    return contextlib.nullcontext() if device is None else torch.cuda.device(device)


def _index(device: str) -> int:
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if not match:
        raise BackendError(f"expected the GPU as cuda or cuda:N, got {device!r}")
    return int(match[1] or 0)


def _why_no_gpu(index: int) -> str:
    """Why there is no such GPU, and what to do; empty where there is one."""
    if torch.version.cuda is None:
        return (
            f"this PyTorch ({torch.__version__}) is built without CUDA: install a CUDA build of it "
            "on a machine with a GPU, or choose device cpu with backend auto"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index < count:
        return ""
    if count:
        return f"there are {count}: choose cuda:0 .. cuda:{count - 1}"
    told = " ".join(str(warning.message) for warning in caught)
    return (
        (f"PyTorch says: {told} " if told else "")
        + "check that `nvidia-smi` shows it and that the driver is new enough for CUDA "
        f"{torch.version.cuda}, or choose device cpu with backend auto"
    )
