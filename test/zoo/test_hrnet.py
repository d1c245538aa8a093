# SPDX-License-Identifier: Apache-2.0
"""HRNet against the same arithmetic written with plain functions."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from zoo import mmseg_names
from zoo.small_models import HRNET

from sparserefine_ros.zoo.hrnet import HRNet

CLASSES = 4
WIDTHS, MODULES, BLOCKS = HRNET.values()


class Functions:
    """What a state dict of MMSegmentation's HRNet computes."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def conv(self, x: Tensor, at: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{at}.weight"]
        bias = self.state.get(f"{at}.bias")
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    def norm(self, x: Tensor, at: str) -> Tensor:
        fields = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.state[f"{at}.{field}"] for field in fields))

    def conv_norm(self, x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        return self.norm(self.conv(x, conv, stride), norm)

    def block(self, x: Tensor, at: str, convs: int) -> Tensor:
        y = x
        for n in range(1, convs + 1):
            y = self.conv_norm(y, f"{at}.conv{n}", f"{at}.bn{n}")
            y = F.relu(y) if n < convs else y
        if f"{at}.downsample.0.weight" in self.state:
            x = self.conv_norm(x, f"{at}.downsample.0", f"{at}.downsample.1")
        return F.relu(x + y)

    def module(self, levels: list[Tensor], at: str) -> list[Tensor]:
        levels = [self.blocks(x, f"{at}.branches.{b}") for b, x in enumerate(levels)]
        fused = []
        for to, target in enumerate(levels):
            total = target
            for source, x in enumerate(levels):
                path = f"{at}.fuse_layers.{to}.{source}"
                if source > to:
                    y = self.conv_norm(x, f"{path}.0", f"{path}.1")
                    factor = 2 ** (source - to)
                    total = total + F.interpolate(y, scale_factor=factor, mode="bilinear")
                for k in range(to - source):
                    x = self.conv_norm(x, f"{path}.{k}.0", f"{path}.{k}.1", 2)
                    x = F.relu(x) if k < to - source - 1 else x
                if source < to:
                    total = total + x
            fused.append(F.relu(total))
        return fused

    def blocks(self, x: Tensor, at: str) -> Tensor:
        for i in range(BLOCKS):
            x = self.block(x, f"{at}.{i}", 2)
        return x

    def __call__(self, image: Tensor) -> Tensor:
        at = "backbone"
        x = F.relu(self.conv_norm(image, f"{at}.conv1", f"{at}.bn1", 2))
        x = F.relu(self.conv_norm(x, f"{at}.conv2", f"{at}.bn2", 2))
        for i in range(BLOCKS):
            x = self.block(x, f"{at}.layer1.{i}", 3)
        first = f"{at}.transition1"
        levels = [
            F.relu(self.conv_norm(x, f"{first}.0.0", f"{first}.0.1")),
            F.relu(self.conv_norm(x, f"{first}.1.0.0", f"{first}.1.0.1", 2)),
        ]
        for stage, count in zip((2, 3, 4), MODULES, strict=True):
            for m in range(count):
                levels = self.module(levels, f"{at}.stage{stage}.{m}")
            if stage < 4:
                new = f"{at}.transition{stage}.{stage}.0"
                levels.append(F.relu(self.conv_norm(levels[-1], f"{new}.0", f"{new}.1", 2)))
        up = [F.interpolate(x, levels[0].shape[2:], mode="bilinear") for x in levels]
        head = "decode_head.convs.0"
        x = F.relu(self.conv_norm(torch.cat(up, 1), f"{head}.conv", f"{head}.bn"))
        return self.conv(x, "decode_head.conv_seg")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return mmseg_names.random_state(mmseg_names.hrnet(WIDTHS, MODULES, BLOCKS, CLASSES))


@pytest.fixture(scope="module")
def network(state: dict[str, Tensor]) -> HRNet:
    network = HRNet(CLASSES, widths=WIDTHS, modules=MODULES, blocks=BLOCKS)
    network.load_state_dict(state)
    return network.eval()


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (96, 160)])
def test_logits(network: HRNet, state: dict[str, Tensor], size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = network(image), Functions(state)(image)
    assert found.shape == (2, CLASSES, size[0] // 4, size[1] // 4)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_sizes_that_divide_by_nothing(network: HRNet) -> None:
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 45, 71)).shape == (1, CLASSES, 12, 18)


def test_every_parameter_learns() -> None:
    net = HRNet(CLASSES, widths=WIDTHS, modules=MODULES, blocks=1).train()
    net(torch.randn(2, 3, 64, 64)).square().mean().backward()
    idle = [
        key
        for key, parameter in net.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert idle == []
