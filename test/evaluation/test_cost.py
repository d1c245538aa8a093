# SPDX-License-Identifier: Apache-2.0
"""MACs against counts on whole grids, and against what PyTorch's modules really compute."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
import torch
from conftest import write_pointwise_onnx
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional as F

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.bundle_spec import FileSpec, UNetRefinerSpec
from sparserefine_ros.evaluation.cost import (
    DenseCost,
    DenseCounter,
    count_parameters,
    count_refiner_macs,
)
from sparserefine_ros.refiner import Refiner
from sparserefine_ros.sparse.plan import build_plan
from sparserefine_ros.sparse.unet import SparseConv
from sparserefine_ros.zoo.export import export_onnx


def make_refiner(widths: tuple[int, ...], blocks: int = 2, ensembler: str = "gated") -> Refiner:
    spec = UNetRefinerSpec(
        file=FileSpec(path="x"), widths=widths, blocks=blocks, ensembler=ensembler
    )
    return Refiner(spec, 3, 5).eval()


def pairs_on_grid(mask: torch.Tensor, stride: int) -> tuple[int, torch.Tensor]:
    """Existing (input, output, tap) triples of a 3x3 convolution, and its active outputs."""
    outputs = mask if stride == 1 else oracle.strided_mask(mask, "image")
    if outputs.numel() == 0:
        return 0, outputs
    neighbours = F.conv2d(
        mask.double(), torch.ones(1, 1, 3, 3).double(), stride=stride, padding=2 - stride
    )
    assert neighbours.shape == outputs.shape
    return int((neighbours * outputs).sum()), outputs


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("ensembler", ["gated", "direct"])
def test_refiner_macs_are_those_of_the_calls_made(density: float, ensembler: str) -> None:
    refiner = make_refiner((4, 6, 7), ensembler=ensembler)
    mask = torch.rand(1, 1, 19, 26, generator=torch.Generator().manual_seed(1)) < density
    sites = mask.flatten().nonzero().flatten()
    plan = build_plan(sites, (1, 19, 26), 3)
    pairs = {}
    for level in plan.levels:
        pairs[id(level.same)], _ = pairs_on_grid(mask, 1)
        if level.down is not None:
            triples, mask = pairs_on_grid(mask, 2)
            pairs[level.down.inputs, level.down.outputs] = triples
            pairs[level.down.outputs, level.down.inputs] = triples
    total = 0

    def count(module: nn.Module, given: tuple[Any, ...], result: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += len(result) * module.in_features * module.out_features
        elif isinstance(module, SparseConv):
            links = given[1]
            triples = pairs.get(id(links), pairs.get((links.inputs, links.outputs)))
            assert triples is not None
            total += triples * module.kernel[0].numel()

    for module in refiner.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        logits = refiner.extractor(torch.zeros(len(sites), 3), plan)
        refiner.ensembler(logits, logits)
    assert count_refiner_macs(refiner, plan) == total
    assert (total > 0) == (density > 0)


def test_parameters_of_the_published_sizes() -> None:
    """Six levels have 79.33 M parameters before the head (SparseRefine, table 1)."""
    refiner = make_refiner((32, 64, 128, 256, 512, 1024), ensembler="direct")
    head = 32 * 5 + 5
    assert round((count_parameters(refiner) - head) / 1e6, 2) == 79.33
    assert count_parameters(nn.BatchNorm1d(7)) == 14


class Mixture(nn.Module):
    """Every kind of node that is counted, and sizes that the graph works out for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=8, bias=False)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.gate = nn.Linear(8, 6)
        self.mix = nn.Linear(6, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        deep = self.depthwise(self.stem(x).relu())
        gate = self.gate(deep.mean((2, 3)))
        wide = self.up(deep) * gate[:, :, None, None]
        wide = F.interpolate(wide, size=x.shape[2:], mode="nearest")
        return self.mix(wide.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def counted_in_torch(module: nn.Module, size: tuple[int, int]) -> int:
    total = 0

    def count(layer: nn.Module, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.ConvTranspose2d):
            total += given[0].numel() * math.prod(layer.weight.shape[1:])
        elif isinstance(layer, nn.Conv2d):
            total += result.numel() * math.prod(layer.weight.shape[1:])
        elif isinstance(layer, nn.Linear):
            total += result.numel() * layer.in_features

    for layer in module.modules():
        layer.register_forward_hook(count)
    with torch.no_grad():
        module(torch.zeros(1, 3, *size))
    return total


def with_model(bundle: Bundle, folder: Path, **taken: object) -> Bundle:
    """The bundle with the model `dense.onnx` of another folder."""
    inputs = bundle.spec.dense.input.model_copy(update=taken)
    dense = bundle.spec.dense.model_copy(update={"input": inputs})
    return Bundle(folder, bundle.spec.model_copy(update={"dense": dense}), bundle.digest)


@pytest.mark.parametrize("size", [(16, 24), (22, 18)])
def test_dense_macs_are_those_pytorch_computes(
    bundle: Bundle, tmp_path: Path, size: tuple[int, int]
) -> None:
    module = Mixture().eval()
    export_onnx(module, tmp_path / "dense.onnx")
    cost = DenseCounter(with_model(bundle, tmp_path))(size)
    assert cost.missing == ""
    assert cost.macs == counted_in_torch(module, size)
    assert cost.parameters == count_parameters(module)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_layout_of_the_input_is_followed(bundle: Bundle, tmp_path: Path, layout: str) -> None:
    weight = np.ones((5, 3), np.float32)
    path = tmp_path / "dense.onnx"
    write_pointwise_onnx(path, weight, np.ones(5, np.float32), layout=layout)
    counter = DenseCounter(with_model(bundle, tmp_path, name="pixels", layout=layout))
    assert counter((6, 10)) == DenseCost(parameters=5 * 3 + 5, macs=6 * 10 * 3 * 5)
    assert counter((12, 10)).macs == 2 * 6 * 10 * 3 * 5


def test_open_shapes_are_named(bundle: Bundle, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["image", "sides"], ["mystery"]),
        helper.make_node("Conv", ["mystery", "kernel"], ["logits"], name="the_conv"),
    ]
    sides = helper.make_tensor_value_info("sides", TensorProto.INT64, [4])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "h", "w"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, "h", "w"])
    kernel = onnx.numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "kernel")
    graph = helper.make_graph(nodes, "open", [image, sides], [logits], [kernel])
    onnx.save(helper.make_model(graph), tmp_path / "dense.onnx")
    cost = DenseCounter(with_model(bundle, tmp_path, name="image"))((8, 8))
    assert (cost.parameters, cost.macs) == (12, None)
    assert "leaves the shapes of Conv 'the_conv' open" in cost.missing


def test_products_that_are_not_looked_into_are_named(bundle: Bundle, tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, 8, 8])
    kernel = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "kernel")
    node = helper.make_node("Einsum", ["image", "kernel"], ["logits"], equation="bihw,oi->bohw")
    graph = helper.make_graph([node], "einsum", [image], [logits], [kernel])
    onnx.save(helper.make_model(graph), tmp_path / "dense.onnx")
    cost = DenseCounter(with_model(bundle, tmp_path))((8, 8))
    assert (cost.parameters, cost.macs) == (12, None)
    assert "those of Einsum are not counted" in cost.missing


CONVOLUTION = helper.make_node("Conv", ["image", "kernel"], ["logits"])
MACS = 8 * 8 * 4 * 3


def save_model(
    folder: Path, nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto], **weights: Any
) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "h", "w"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, "h", "w"])
    constants = [onnx.numpy_helper.from_array(each, name) for name, each in weights.items()]
    graph = helper.make_graph(nodes, "graph", [image], [logits], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions)
    onnx.save(model, folder / "dense.onnx")


def test_functions_of_the_model_are_looked_into(bundle: Bundle, tmp_path: Path) -> None:
    body = helper.make_node("Conv", ["a", "b"], ["c"])
    function = helper.make_function(
        "mine", "Block", ["a", "b"], ["c"], [body], [helper.make_opsetid("", 17)]
    )
    call = helper.make_node("Block", ["image", "kernel"], ["logits"], domain="mine")
    save_model(tmp_path, [call], [function], kernel=np.ones((4, 3, 1, 1), np.float32))
    cost = DenseCounter(with_model(bundle, tmp_path))((8, 8))
    assert cost == DenseCost(parameters=12, macs=MACS)


def test_operators_nobody_knows_are_named(bundle: Bundle, tmp_path: Path) -> None:
    call = helper.make_node("Block", ["image", "kernel"], ["logits"], domain="mine")
    save_model(tmp_path, [call], [], kernel=np.ones((4, 3, 1, 1), np.float32))
    cost = DenseCounter(with_model(bundle, tmp_path))((8, 8))
    assert cost.macs is None
    assert "those of Block are not counted" in cost.missing


def test_quantised_weights_count(bundle: Bundle, tmp_path: Path) -> None:
    unpack = helper.make_node("DequantizeLinear", ["small", "scale", "zero"], ["kernel"], axis=0)
    save_model(
        tmp_path, [unpack, CONVOLUTION], [], small=np.ones((4, 3, 1, 1), np.int8),
        scale=np.ones(4, np.float32), zero=np.zeros(4, np.int8),
    )  # fmt: skip
    cost = DenseCounter(with_model(bundle, tmp_path))((8, 8))
    assert cost == DenseCost(parameters=12, macs=MACS)


def test_without_onnx_nothing_is_counted(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    cost = DenseCounter(bundle)((8, 8))
    assert (cost.parameters, cost.macs) == (None, None)
    assert "pip install onnx" in cost.missing
