# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-accumulates (MACs) of the dense model and of the refiner.

One MAC is a multiplication with its addition, in a convolution or matrix product; norms,
activations, softmax, resizing and biases are not counted. Shape legend: N sites of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.refiner import Refiner
from sparserefine_ros.sparse.plan import SparsePlan
from sparserefine_ros.sparse.pointnet import PointNet
from sparserefine_ros.sparse.unet import ResidualBlock, SparseConv, SparseUNet, UNetLevel

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]


def count_parameters(module: nn.Module) -> int:
    """Trainable values; batch norm's running statistics are none."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_refiner_macs(refiner: Refiner, plan: SparsePlan) -> int:
    """MACs of sparse UNet and ensembler on the sites of one frame.

    A sparse convolution takes one product of its widths for each existing (input, output, tap)
    triple; missing neighbours cost nothing.
    """
    extractor, sites = refiner.extractor, plan.levels[0].count
    if isinstance(extractor, PointNet):
        return sites * _linear_weights(refiner)
    return count_unet_macs(extractor, plan) + sites * _linear_weights(refiner.ensembler)


def count_unet_macs(unet: SparseUNet, plan: SparsePlan) -> int:
    """MACs of a sparse UNet on the sites of one frame; missing neighbours cost nothing."""
    first = plan.levels[0]
    return (
        _conv_macs(unet.stem, first.same.pairs())
        + _level_macs(unet.levels, plan, 0)
        + first.count * unet.head.weight.numel()
    )


def _linear_weights(module: nn.Module) -> int:
    layers = (part for part in module.modules() if isinstance(part, nn.Linear))
    return sum(layer.weight.numel() for layer in layers)


def _level_macs(level: UNetLevel, plan: SparsePlan, depth: int) -> int:
    here = plan.levels[depth]
    same, sites = here.same.pairs(), here.count
    macs = sum(_block_macs(block, same, sites) for block in level.before)
    if level.below is None or here.down is None:
        return macs
    strided = here.down.pairs()
    macs += _conv_macs(level.down, strided) + _conv_macs(level.up, strided)
    macs += _level_macs(level.below, plan, depth + 1)
    return macs + sum(_block_macs(block, same, sites) for block in level.after)


def _block_macs(block: nn.Module, pairs: int, sites: int) -> int:
    assert isinstance(block, ResidualBlock)
    macs = _conv_macs(block.conv1, pairs) + _conv_macs(block.conv2, pairs)
    if isinstance(block.shortcut, nn.Linear):
        macs += sites * block.shortcut.weight.numel()
    return macs


def _conv_macs(conv: SparseConv, pairs: int) -> int:
    _, inputs, outputs = conv.kernel.shape
    return pairs * inputs * outputs


@dataclass(frozen=True)
class DenseCost:
    """What a dense model costs at one input size.

    Attributes:
        parameters: elements of its weights, floating-point or quantised; norms that are not folded
            into a convolution bring their running statistics along. None when not counted.
        macs: of its Conv, ConvTranspose, Gemm and MatMul nodes; None when not counted.
        missing: why something was not counted; empty when everything was.
    """

    parameters: int | None
    macs: int | None
    missing: str = ""


class DenseCounter:
    """Counts the dense model of a bundle from its ONNX graph, once for each input size."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._known: dict[tuple[int, int], DenseCost] = {}

    def __call__(self, low_res_size: tuple[int, int]) -> DenseCost:
        """Cost at an input of (h, w)."""
        if low_res_size not in self._known:
            self._known[low_res_size] = _count_dense(self._bundle, low_res_size)
        return self._known[low_res_size]


def _count_dense(bundle: Bundle, low_res_size: tuple[int, int]) -> DenseCost:
    try:
        import onnx
        import onnx.inliner
    except ImportError:
        return DenseCost(
            None, None, "dense parameters and MACs need the package onnx: pip install onnx"
        )
    path = bundle.path(bundle.spec.dense.file)
    model = onnx.inliner.inline_local_functions(onnx.load(path))
    parameters = _count_weights(model.graph)
    _set_input_size(model, bundle, low_res_size)
    # Sizes that the graph computes for itself, as for a resize, are followed too.
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = _known_shapes(graph)
    macs = 0
    for node in graph.node:
        if node.op_type in _NOT_COUNTED or node.domain not in _STANDARD:
            return DenseCost(
                parameters, None,
                f"dense MACs of {bundle.name} are unknown: those of {node.op_type} are not counted",
            )  # fmt: skip
        count = _MACS.get(node.op_type)
        if count is None:
            continue
        tensors = [shapes.get(name) for name in (*node.input[:2], node.output[0])]
        known = [shape for shape in tensors if shape is not None]
        if len(known) < len(tensors):
            return DenseCost(
                parameters, None,
                f"dense MACs of {bundle.name} are unknown: its graph leaves the shapes of "
                f"{node.op_type} {node.name or node.output[0]!r} open",
            )  # fmt: skip
        macs += count(known, node)
    return DenseCost(parameters, macs)


def _count_weights(graph: onnx.GraphProto) -> int:
    from onnx import TensorProto

    floating = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    quantised = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    # Scales and zero points are no weights.
    scales = {name for n in graph.node if n.op_type in _QUANTISERS for name in n.input[1:]}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensors |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    return sum(
        math.prod(tensor.dims)
        for name, tensor in tensors.items()
        if tensor.dims
        and name not in scales
        and (tensor.data_type in floating or name in quantised)
    )


def _known_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return shapes


def _set_input_size(model: onnx.ModelProto, bundle: Bundle, size: tuple[int, int]) -> None:
    """Fix the size of the one input that is no weight, or of the one that the bundle names."""
    taken = bundle.spec.dense.input
    weights = {weight.name for weight in model.graph.initializer}
    shape = (1, 3, *size) if taken.layout == "NCHW" else (1, *size, 3)
    for value in model.graph.input:
        if value.name in weights or taken.name not in (None, value.name):
            continue
        for dim, side in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = side


def _conv(shapes: Sequence[Shape], node: Any) -> int:
    """Each output takes one filter [inputs / groups, kernel]."""
    _, weight, output = shapes
    return math.prod(output) * math.prod(weight[1:])


def _transposed_conv(shapes: Sequence[Shape], node: Any) -> int:
    """Each input feeds one filter [outputs / groups, kernel]."""
    taken, weight, _ = shapes
    return math.prod(taken) * math.prod(weight[1:])


def _gemm(shapes: Sequence[Shape], node: Any) -> int:
    left, _, output = shapes
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(output) * left[0 if transposed else 1]


def _matmul(shapes: Sequence[Shape], node: Any) -> int:
    left, _, output = shapes
    return math.prod(output) * left[-1]


# They multiply too, in ways that are not looked into.
_NOT_COUNTED: Final = frozenset(
    {
        "Attention", "ConvInteger", "DeformConv", "Einsum", "GRU", "If", "LSTM", "Loop",
        "MatMulInteger", "QLinearConv", "QLinearMatMul", "RNN", "Scan",
    }
)  # fmt: skip
_STANDARD: Final = ("", "ai.onnx")
_QUANTISERS: Final = ("QuantizeLinear", "DequantizeLinear")
_MACS: Final = {"Conv": _conv, "ConvTranspose": _transposed_conv, "Gemm": _gemm, "MatMul": _matmul}
