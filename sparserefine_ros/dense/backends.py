# SPDX-License-Identifier: Apache-2.0
"""The engines of the dense stage by name, and which of them "auto" stands for."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.devices import device_kind, require_gpu
from sparserefine_ros.dense.options import EngineOptions
from sparserefine_ros.errors import BackendError

AUTO: Final = "auto"

# Compute capabilities of the data-centre GPUs that TensorRT for RTX leaves out.
NOT_FOR_RTX: Final = ((9, 0), (10, 0), (10, 3))


@dataclass(frozen=True)
class Backend:
    """What an engine can do, known before it is imported.

    Attributes:
        module: holds its `open_segmenter`; imported only when the engine is chosen.
        devices: kinds of devices it runs on.
        precisions: what it takes for `EngineOptions.precision`.
    """

    module: str
    devices: tuple[str, ...]
    precisions: tuple[str, ...]


_ONNXRUNTIME: Final = "sparserefine_ros.dense.onnxruntime"
_ONNX_TENSORRT: Final = Backend(_ONNXRUNTIME, ("cuda",), ("model", "fp16"))
_TENSORRT: Final = Backend("sparserefine_ros.dense.tensorrt", ("cuda",), ("model", "fp16"))

BACKENDS: Final[Mapping[str, Backend]] = {
    "onnxruntime": Backend(_ONNXRUNTIME, ("cpu", "cuda"), ("model",)),
    "onnxruntime_tensorrt": _ONNX_TENSORRT,
    "onnxruntime_tensorrt_rtx": _ONNX_TENSORRT,
    "openvino": Backend("sparserefine_ros.dense.openvino", ("cpu",), ("model", "bf16")),
    "tensorrt": _TENSORRT,
    "tensorrt_rtx": _TENSORRT,
}

# Python packages of the TensorRT flavours, best first: the full one, and what its wheels hold.
TENSORRT_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}


@dataclass(frozen=True)
class Choice:
    """A backend, and why it was taken.

    Attributes:
        backend: a name in `BACKENDS`.
        reason: in words; empty where the user named it.
    """

    backend: str
    reason: str = ""

    def annotate(self, description: str) -> str:
        """`description` of the engine, with the reason behind it."""
        return f"{description} ({AUTO}: {self.reason})" if self.reason else description


def choose_backend(bundle: Bundle, backend: str, device: str, engine: EngineOptions) -> Choice:
    """What `backend` stands for.

    On the CPU "auto" is ONNX Runtime. On a GPU it is TensorRT where it is installed and the sizes
    of the pictures are known, else ONNX Runtime.

    Raises:
        BackendError: unknown backend; or "auto" for a GPU that is not there.
    """
    if backend != AUTO:
        if backend not in BACKENDS:
            known = ", ".join([AUTO, *BACKENDS])
            raise BackendError(f"expected a dense backend out of {known}, got {backend!r}")
        return Choice(backend)
    if device_kind(device) != "cuda":
        return Choice("onnxruntime", f"device is {device}")
    gpu = require_gpu(device, "the dense model")
    installed = [name for name in TENSORRT_PACKAGES if installed_package(name)]
    if not installed:
        return Choice("onnxruntime", f"device is {device}, TensorRT is not installed")
    if installed == ["tensorrt_rtx"] and torch.cuda.get_device_capability(gpu) in NOT_FOR_RTX:
        return Choice("onnxruntime", f"device is {device}, which tensorrt_rtx is not made for")
    if bundle.spec.dense.input.size is None and not engine.picture_sizes:
        return Choice(
            "onnxruntime",
            f"device is {device}; {installed[0]} would need the size of the pictures",
        )
    return Choice(installed[0], f"device is {device}, {installed[0]} is installed")


def require_precision(backend: str, precision: str) -> None:
    """Check that a backend computes in a precision.

    Raises:
        BackendError: it does not.
    """
    known = BACKENDS[backend].precisions
    if precision not in known:
        raise BackendError(
            f"backend {backend} takes precision {' or '.join(known)}, got {precision!r}; "
            f"choose {known[0]}"
        )


def installed_package(flavour: str) -> str | None:
    """The Python package of a TensorRT flavour; None where there is none. It is not imported."""
    for name in TENSORRT_PACKAGES[flavour]:
        # What is set to None in sys.modules counts as absent.
        if sys.modules.get(name, name) is not None and importlib.util.find_spec(name):
            return name
    return None
