# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from conftest import random_statistics
from torch import Tensor, nn

from sparserefine_ros.zoo.efficientnet import EfficientNetLite
from sparserefine_ros.zoo.encoder import Encoder
from sparserefine_ros.zoo.export import export_onnx
from sparserefine_ros.zoo.ladder import LadderNet
from sparserefine_ros.zoo.residual import ResidualEncoder

CLASSES = 5


def make_net() -> LadderNet:
    torch.manual_seed(41)
    encoder = ResidualEncoder(stem=4, widths=(6, 8, 10, 12), blocks=2)
    net = LadderNet(encoder, CLASSES, ladder=8, features=6)
    random_statistics(net)
    return net.eval()


def random_image(height: int, width: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randn(batch, 3, height, width, generator=generator)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (180, 240), (33, 40), (4, 4), (1, 1)])
def test_logits_at_half_the_size_rounded_up(size: tuple[int, int]) -> None:
    with torch.no_grad():
        logits = make_net()(random_image(*size, batch=2))
    assert logits.shape == (2, CLASSES, math.ceil(size[0] / 2), math.ceil(size[1] / 2))
    assert logits.isfinite().all()


def test_every_parameter_learns() -> None:
    net = make_net().train()
    net(random_image(64, 96, batch=2)).square().mean().backward()
    idle = [
        key
        for key, parameter in net.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert idle == []


def test_sees_the_whole_picture() -> None:
    net = make_net()
    image = random_image(64, 64).requires_grad_()
    net(image)[0, :, 0, 0].sum().backward()
    assert image.grad is not None
    # Pyramid pooling averages over everything: the far corner matters to the near one.
    assert image.grad[0, :, -8:, -8:].abs().max() > 0


@pytest.mark.parametrize(
    "encoder",
    [
        ResidualEncoder(stem=4, widths=(6,), blocks=1),
        ResidualEncoder(stem=4, widths=(6, 8, 9), blocks=2),
        EfficientNetLite("lite0"),
    ],
    ids=["shallow", "deep", "efficientnet"],
)
def test_other_encoders(encoder: Encoder) -> None:
    net = LadderNet(encoder, 3, ladder=8, features=4)
    assert net.eval()(random_image(32, 48)).shape == (1, 3, 16, 24)


class TestExport:
    def test_equals_the_network_at_sizes_other_than_the_traced_one(self, tmp_path: Path) -> None:
        net = make_net()
        export_onnx(net, tmp_path / "net.onnx", example_size=(64, 96))
        assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
        onnx.checker.check_model(onnx.load(tmp_path / "net.onnx"), full_check=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx", options)
        assert [entry.name for entry in session.get_inputs()] == ["image"]
        assert [entry.name for entry in session.get_outputs()] == ["logits", "features"]
        assert session.get_inputs()[0].shape[:2] == ["batch", 3]
        assert not any(isinstance(side, int) for side in session.get_inputs()[0].shape[2:])
        for size in ((64, 96), (36, 52), (180, 240), (37, 51), (4, 8)):
            image = random_image(*size)
            found = session.run(None, {"image": image.numpy()})
            with torch.no_grad():
                expected = [net(image), net.features(image)]
            for mine, theirs in zip(found, expected, strict=True):
                # Float32 through about twenty layers, with other summation orders.
                torch.testing.assert_close(
                    torch.from_numpy(mine), theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max()
                )

    def test_exports_inference_behaviour_from_a_network_in_training(self, tmp_path: Path) -> None:
        net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.9))
        random_statistics(net)
        export_onnx(net.train(), tmp_path / "net.onnx", example_size=(8, 8))
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
        image = random_image(5, 7)
        (found,) = session.run(None, {"image": image.numpy()})
        with torch.no_grad():
            expected = net.eval()(image)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)

    def test_a_failing_export_leaves_the_old_file(self, tmp_path: Path) -> None:
        class Broken(nn.Module):
            def forward(self, image: Tensor) -> Tensor:
                raise RuntimeError("broken network")

        (tmp_path / "net.onnx").write_bytes(b"old")
        with pytest.raises(RuntimeError, match="broken network"):
            export_onnx(Broken(), tmp_path / "net.onnx", example_size=(8, 8))
        assert (tmp_path / "net.onnx").read_bytes() == b"old"
