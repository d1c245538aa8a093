# SPDX-License-Identifier: Apache-2.0
"""SegNeXt and its Hamburger against the same arithmetic written with plain functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from zoo import mmseg_names
from zoo.small_models import SEGNEXT as SIZE

from sparserefine_ros.dense.half import to_half
from sparserefine_ros.zoo.export import export_onnx
from sparserefine_ros.zoo.hamburger import NonNegativeFactorisation
from sparserefine_ros.zoo.segnext import MSCAN, SegNeXt

CLASSES = 4


def mscan(state: Mapping[str, Tensor], image: Tensor) -> list[Tensor]:
    """What MMSegmentation computes from such a state dict."""

    def conv(x: Tensor, at: str, stride: int = 1) -> Tensor:
        weight = state[f"{at}.weight"]
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        groups = x.shape[1] // weight.shape[1]
        bias = state[f"{at}.bias"]
        return F.conv2d(x, weight, bias, stride=stride, padding=padding, groups=groups)

    def norm(x: Tensor, at: str) -> Tensor:
        fields = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{at}.{field}"] for field in fields))

    x, levels = image, []
    for i in range(1, 5):
        at = f"backbone.patch_embed{i}"
        if i == 1:
            x = F.gelu(norm(conv(x, f"{at}.proj.0", 2), f"{at}.proj.1"))
            x = norm(conv(x, f"{at}.proj.3", 2), f"{at}.proj.4")
        else:
            x = norm(conv(x, f"{at}.proj", 2), f"{at}.norm")
        for j in range(SIZE.depths[i - 1]):
            at = f"backbone.block{i}.{j}"
            normed = norm(x, f"{at}.norm1")
            gated = F.gelu(conv(normed, f"{at}.attn.proj_1"))
            unit = f"{at}.attn.spatial_gating_unit"
            local = conv(gated, f"{unit}.conv0")
            strips = [conv(conv(local, f"{unit}.conv{n}_1"), f"{unit}.conv{n}_2") for n in range(3)]
            attended = gated * conv(local + sum(strips), f"{unit}.conv3")
            attended = conv(attended, f"{at}.attn.proj_2") + normed
            x = x + state[f"{at}.layer_scale_1"].view(-1, 1, 1) * attended
            hidden = conv(conv(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1"), f"{at}.mlp.dwconv")
            hidden = conv(F.gelu(hidden), f"{at}.mlp.fc2")
            x = x + state[f"{at}.layer_scale_2"].view(-1, 1, 1) * hidden
        at, rows = f"backbone.norm{i}", x.permute(0, 2, 3, 1)
        weight, bias = state[f"{at}.weight"], state[f"{at}.bias"]
        x = F.layer_norm(rows, weight.shape, weight, bias).permute(0, 3, 1, 2)
        levels.append(x)
    return levels


def shapes() -> mmseg_names.Shapes:
    return mmseg_names.segnext(SIZE.widths, SIZE.depths, SIZE.expansions, SIZE.head, CLASSES)


def make_network() -> SegNeXt:
    network = SegNeXt(CLASSES, size=SIZE)
    network.load_state_dict(mmseg_names.random_state(shapes()))
    return network.eval()


def picture(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def test_features() -> None:
    state, image = mmseg_names.random_state(shapes()), picture(64, 96)
    backbone = MSCAN(SIZE)
    prefix = "backbone."
    backbone.load_state_dict(
        {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    )
    with torch.no_grad():
        found, expected = backbone.eval()(image), mscan(state, image)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def factorise(x: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """Lee and Seung's updates in float64, as SegNeXt's head applies them; x is [K, N]."""
    codes = np.exp(x.T @ bases)
    codes /= codes.sum(1, keepdims=True)
    for step in range(8):
        codes = codes * (x.T @ bases) / (codes @ (bases.T @ bases) + 1e-6)
        if step < 7:
            bases = bases * (x @ codes) / (bases @ (codes.T @ codes) + 1e-6)
    return bases @ codes.T


class TestFactorisation:
    @pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 8)])
    def test_is_the_multiplicative_updates(self, size: tuple[int, int]) -> None:
        ham = NonNegativeFactorisation(24)
        x = torch.rand(2, 24, *size, generator=torch.Generator().manual_seed(4))
        found = ham(x)
        bases = ham.bases.double().numpy()
        np.testing.assert_allclose(np.linalg.norm(bases, axis=0), 1.0, rtol=1e-5)
        for mine, given in zip(found, x, strict=True):
            expected = factorise(given.double().flatten(1).numpy(), bases)
            np.testing.assert_allclose(mine.flatten(1).numpy(), expected, rtol=1e-3, atol=1e-4)

    def test_keeps_what_has_low_rank(self) -> None:
        generator = torch.Generator().manual_seed(4)
        left, right = torch.rand(24, 2, generator=generator), torch.rand(2, 80, generator=generator)
        x = (left @ right).view(1, 24, 8, 10)
        # Eight updates bring it near; the mean of all pixels is three times as far.
        assert (NonNegativeFactorisation(24)(x) - x).norm() < 0.12 * x.norm()

    def test_half_precision_does_not_overflow(self) -> None:
        x = 30 * torch.rand(1, 64, 48, 64, generator=torch.Generator().manual_seed(4))
        exact = NonNegativeFactorisation(64)(x)
        found = NonNegativeFactorisation(64).half()(x.half())
        assert found.dtype == torch.float16
        torch.testing.assert_close(found.float(), exact, rtol=1e-2, atol=1e-1)

    def test_black_pixels(self) -> None:
        assert torch.equal(
            NonNegativeFactorisation(8)(torch.zeros(1, 8, 3, 4)), torch.zeros(1, 8, 3, 4)
        )


def test_the_rank_is_chosen() -> None:
    assert NonNegativeFactorisation(8, rank=3).bases.shape == (8, 3)
    network = SegNeXt(CLASSES, size=SIZE, rank=5)
    assert network.get_submodule("decode_head.hamburger.ham").bases.shape == (SIZE.head, 5)


def test_a_model_brought_to_half_precision_keeps_its_sums_in_float32(tmp_path: Path) -> None:
    export_onnx(make_network(), tmp_path / "s.onnx", example_size=(64, 64))
    model = onnx.shape_inference.infer_shapes(
        onnx.load_from_string(to_half(tmp_path / "s.onnx")), data_prop=True
    )
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    within = [node for node in products if "/ham/" in node.name]
    assert len(within) > 20
    assert {kinds[node.output[0]] for node in within} == {onnx.TensorProto.FLOAT}
    convolved = {kinds.get(n.output[0]) for n in model.graph.node if n.op_type == "Conv"}
    assert convolved == {onnx.TensorProto.FLOAT16}


def test_logits_are_the_same_each_time_and_for_each_network() -> None:
    image = picture(64, 96)
    network = make_network()
    with torch.no_grad():
        first, again, other = network(image), network(image), make_network()(image)
    assert first.shape == (2, CLASSES, 8, 12)
    assert first.std() > 0.1
    assert torch.equal(first, again)
    assert torch.equal(first, other)


def test_every_parameter_learns() -> None:
    network = SegNeXt(CLASSES, size=SIZE).train()
    network(picture(64, 64)).square().mean().backward()
    idle = [
        key
        for key, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert idle == []
