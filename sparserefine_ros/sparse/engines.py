# SPDX-License-Identifier: Apache-2.0
"""Engines of the sparse UNet: the same weights and results, chosen by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Literal, Protocol

import torch
from torch import Tensor

from sparserefine_ros.dense.devices import find_gpu
from sparserefine_ros.errors import BackendError
from sparserefine_ros.kernels.library import Kernels, compiled_kernels
from sparserefine_ros.sparse.compiled import CompiledUNet
from sparserefine_ros.sparse.dense import DenseUNet
from sparserefine_ros.sparse.plan import SparsePlan
from sparserefine_ros.sparse.pytorch import PyTorchUNet
from sparserefine_ros.sparse.unet import SparseUNet

AUTO: Final = "auto"


class SparseEngine(Protocol):
    """A sparse UNet ready to run; not re-entrant."""

    def __call__(self, features: Tensor, plan: SparsePlan) -> Tensor:
        """Features float32 [N, inputs] of the plan's finest sites -> logits float32 [N, C]."""


def _kernels() -> Kernels:
    kernels = compiled_kernels()
    if kernels is None:
        raise BackendError(
            "expected compiled kernels for the engine compiled, found none; install a C++ compiler "
            "(apt install g++) and install the package again"
        )
    return kernels


def _spconv(unet: SparseUNet, threads: int) -> SparseEngine:
    from sparserefine_ros.sparse.spconv import SpConvUNet

    return SpConvUNet(unet)


def _torchsparse(unet: SparseUNet, dtype: torch.dtype) -> SparseEngine:
    from sparserefine_ros.sparse.torchsparse import TorchSparseUNet

    return TorchSparseUNet(unet, dtype=dtype)


def require_triton(engine: str) -> None:
    """Check that Triton is there for the engine of that name.

    Raises:
        BackendError: it is not installed.
    """
    try:
        import triton  # noqa: F401
    except ImportError as err:
        raise BackendError(
            f"expected the package triton for the engine {engine} ({err}); pip install triton "
            "(Linux, x86-64)"
        ) from err


def _triton(unet: SparseUNet, precision: Literal["fp16", "bf16", "fp32"]) -> SparseEngine:
    require_triton("triton")
    from sparserefine_ros.triton_kernels.unet import TritonUNet

    return TritonUNet(unet, precision=precision)


def _dense_onnxruntime(unet: SparseUNet, threads: int) -> SparseEngine:
    from sparserefine_ros.sparse.dense_onnx import DenseOnnxUNet, OnnxRuntimeSession

    return DenseOnnxUNet(unet, lambda path: OnnxRuntimeSession(path, threads))


def _dense_openvino(unet: SparseUNet, threads: int, engine: str) -> SparseEngine:
    from sparserefine_ros.dense.openvino import require_openvino
    from sparserefine_ros.sparse.dense_onnx import DenseOnnxUNet, OpenVinoSession

    half = engine.endswith("-bfloat16")
    require_openvino(f"the engine {engine}", half=half)
    return DenseOnnxUNet(unet, lambda path: OpenVinoSession(path, threads, half=half))


def _compiled(unet: SparseUNet, threads: int, dtype: torch.dtype) -> SparseEngine:
    return CompiledUNet(unet, _kernels(), threads=threads, dtype=dtype)


_ENGINES: Final[Mapping[str, Callable[[SparseUNet, int], SparseEngine]]] = {
    "compiled": lambda unet, threads: _compiled(unet, threads, torch.float32),
    "compiled-bfloat16": lambda unet, threads: _compiled(unet, threads, torch.bfloat16),
    "pytorch": lambda unet, threads: PyTorchUNet(unet),
    "triton": lambda unet, threads: _triton(unet, "fp32"),
    "triton-float16": lambda unet, threads: _triton(unet, "fp16"),
    "triton-bfloat16": lambda unet, threads: _triton(unet, "bf16"),
    "spconv": _spconv,
    "torchsparse": lambda unet, threads: _torchsparse(unet, torch.float32),
    "torchsparse-float16": lambda unet, threads: _torchsparse(unet, torch.float16),
    "dense": lambda unet, threads: DenseUNet(unet),
    "dense-bfloat16": lambda unet, threads: DenseUNet(unet, dtype=torch.bfloat16),
    "dense-onnxruntime": _dense_onnxruntime,
    **{
        name: partial(_dense_openvino, engine=name)
        for name in ("dense-openvino", "dense-openvino-bfloat16")
    },
}
ENGINES: Final = tuple(_ENGINES)


def has_triton() -> bool:
    """Whether Triton is installed; it is not imported."""
    return importlib.util.find_spec("triton") is not None


def runs_on_gpu(name: str) -> bool:
    """Whether the engine of that name needs a GPU."""
    return name.startswith(("triton", "torchsparse"))


def is_half(name: str) -> bool:
    """Whether the engine of that name multiplies in half precision."""
    return name.endswith("float16")


def needs_cpu(name: str) -> bool:
    """Whether the engine of that name runs on the CPU only."""
    return name.startswith(("compiled", "dense-onnxruntime", "dense-openvino"))


def choose_engine(name: str, device: str = "cpu") -> str:
    """The engine that a name stands for; "auto" takes the fastest that suits processor and device.

    On the CPU that is "compiled-bfloat16" where the processor multiplies bfloat16 itself, else
    "compiled", or "pytorch" where no kernels were compiled; on a GPU "triton-float16" where Triton
    is installed, "triton" before compute capability 8.0; on any other device "pytorch".

    Args:
        name: of an engine, or "auto".
        device: that the weights are on, such as "cpu" or "cuda:0".

    Raises:
        BackendError: no engine or no device of that name.
    """
    if name == AUTO:
        kind = device.partition(":")[0]
        if kind == "cuda" and has_triton():
            return "triton-float16" if _multiplies_halves(device) else "triton"
        kernels = compiled_kernels() if kind == "cpu" else None
        if kernels is None:
            return "pytorch"
        return "compiled-bfloat16" if kernels.has_bfloat16 else "compiled"
    if name not in _ENGINES:
        raise BackendError(
            f"expected a sparse engine of {', '.join((AUTO, *_ENGINES))}, got {name!r}"
        )
    return name


def _multiplies_halves(gpu: str) -> bool:
    """Whether Triton takes the tensor cores of a GPU for them; one that is not there has them."""
    place = find_gpu(gpu)
    return place is None or torch.cuda.get_device_capability(place) >= (8, 0)


def open_engine(name: str, unet: SparseUNet, *, threads: int) -> SparseEngine:
    """A copy of a trained UNet on the engine of that name.

    Args:
        name: "compiled" (our C++ kernels, float32), "compiled-bfloat16" (products of bfloat16, sums
            in float32), "pytorch", "triton" (our GPU kernels, float32), "triton-float16" and
            "triton-bfloat16" (sums in float32), "spconv", "torchsparse" and "torchsparse-float16"
            (on a GPU), or masked convolutions on the whole picture, for comparison: "dense" and
            "dense-bfloat16" in PyTorch, "dense-onnxruntime", "dense-openvino" and
            "dense-openvino-bfloat16"; "auto": see `choose_engine`.
        unet: trained weights, on the device to run on.
        threads: of the engine; those in PyTorch follow PyTorch's, SpConv has one.

    Raises:
        BackendError: no engine of that name, it is not installed, or it lacks its device.
    """
    device = unet.head.weight.device
    chosen = choose_engine(name, str(device))
    if needs_cpu(chosen) and device.type != "cpu":
        raise BackendError(
            f"expected weights on the CPU for the sparse engine {chosen}, got them on {device}; "
            "choose device cpu, or the sparse engine auto"
        )
    return _ENGINES[chosen](unet, threads)
