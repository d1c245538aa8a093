# SPDX-License-Identifier: Apache-2.0
"""HRNet with a fully convolutional head.

The high-resolution network (Sun et al., "High-Resolution Representations for Labeling Pixels and
Regions", 2019) runs branches at strides 4, 8, 16 and 32 side by side, which exchange features after
every few blocks; the head sees all of them at stride 4. Modules bear the names of MMSegmentation's
checkpoints.

Shape legend: B batch; C classes; h, w input size. Tensors are [B, channels, rows, columns].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.zoo.convolution import PointwiseConv, resize_like
from sparserefine_ros.zoo.network import DenseNetwork

W48: Final = (48, 96, 192, 384)

_STEM: Final = 64
_EXPANSION: Final = 4
_STAGES: Final = (2, 3, 4)


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions (He et al., 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(channels, channels, 3)
        self.conv2, self.bn2 = _conv_bn(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, rows, columns] -> the same shape."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


class Bottleneck(nn.Module):
    """ResNet's block of 1x1, 3x3 and 1x1 convolutions."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        outputs = _EXPANSION * width
        self.conv1, self.bn1 = _conv_bn(inputs, width, 1)
        self.conv2, self.bn2 = _conv_bn(width, width, 3)
        self.conv3, self.bn3 = _conv_bn(width, outputs, 1)
        self.downsample = (
            nn.Sequential(*_conv_bn(inputs, outputs, 1)) if inputs != outputs else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, rows, columns] -> [B, 4 * width, rows, columns]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.downsample(x) + self.bn3(self.conv3(y)))


def _halve(inputs: int, outputs: int, *, relu: bool) -> nn.Sequential:
    return nn.Sequential(*_conv_bn(inputs, outputs, 3, 2), *([nn.ReLU()] if relu else []))


def _fuse_path(source: int, target: int, widths: Sequence[int]) -> nn.Module:
    """From branch `source` to the width of `target`, and to its resolution if that is coarser."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(*_conv_bn(widths[source], widths[target], 1))
    between = [_halve(widths[source], widths[source], relu=True) for _ in range(source, target - 1)]
    return nn.Sequential(*between, _halve(widths[source], widths[target], relu=False))


class HighResolutionModule(nn.Module):
    """Blocks on every branch; then each branch becomes the sum of all of them."""

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width) for _ in range(blocks))) for width in widths
        )
        places = range(len(widths))
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse_path(source, target, widths) for source in places)
            for target in places
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """One tensor for each branch -> the same shapes."""
        levels = [branch(level) for branch, level in zip(self.branches, levels, strict=True)]
        return [self._fuse(place, levels) for place in range(len(levels))]

    def _fuse(self, place: int, levels: list[Tensor]) -> Tensor:
        paths, target = self.fuse_layers[place].children(), levels[place]
        parts = [path(level) for path, level in zip(paths, levels, strict=True)]
        parts[place + 1 :] = [resize_like(part, target) for part in parts[place + 1 :]]
        return F.relu(functools.reduce(torch.add, parts))


class HRNetBackbone(nn.Module):
    """Features at strides 4, 8, 16 and 32.

    Args:
        widths: channels of the four branches.
        modules: high-resolution modules of the stages with two, three and four branches.
        blocks: residual blocks of a branch in each module.
    """

    def __init__(self, widths: Sequence[int], *, modules: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(3, _STEM, 3, 2)
        self.conv2, self.bn2 = _conv_bn(_STEM, _STEM, 3, 2)
        first = _EXPANSION * _STEM
        self.layer1 = nn.Sequential(
            *(Bottleneck(first if i else _STEM, _STEM) for i in range(blocks))
        )
        widen = nn.Sequential(*_conv_bn(first, widths[0], 3), nn.ReLU())
        kept, deepest = [widen], first
        for branches, count in zip(_STAGES, modules, strict=True):
            added = nn.Sequential(_halve(deepest, widths[branches - 1], relu=True))
            stage = (HighResolutionModule(widths[:branches], blocks) for _ in range(count))
            self.add_module(f"transition{branches - 1}", nn.ModuleList([*kept, added]))
            self.add_module(f"stage{branches}", nn.Sequential(*stage))
            kept, deepest = [nn.Sequential() for _ in range(branches)], widths[branches - 1]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image float [B, 3, h, w] -> one tensor for each stride."""
        x = F.relu(self.bn1(self.conv1(image)))
        levels = [self.layer1(F.relu(self.bn2(self.conv2(x))))]
        for branches in _STAGES:
            *kept, added = self.get_submodule(f"transition{branches - 1}").children()
            deeper = added(levels[-1])
            levels = [path(level) for path, level in zip(kept, levels, strict=True)]
            levels = self.get_submodule(f"stage{branches}")([*levels, deeper])
        return levels


class FCNHead(nn.Module):
    """All levels at the finest size, a 1x1 convolution over them, and the classifier."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(PointwiseConv(channels, channels, norm="bn"))
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels, finest first -> [B, C, rows, columns] of the finest."""
        x = torch.cat([levels[0], *(resize_like(level, levels[0]) for level in levels[1:])], 1)
        return self.conv_seg(self.convs(x))  # type: ignore[no-any-return]


class HRNet(DenseNetwork):
    """HRNet with FCN head; logits at a quarter of the input size.

    Args:
        classes: C.
        widths: channels of the branches; the paper's network is W48.
        modules: high-resolution modules of the stages with two, three and four branches.
        blocks: residual blocks of a branch in each module.
    """

    def __init__(
        self,
        classes: int,
        *,
        widths: Sequence[int] = W48,
        modules: Sequence[int] = (1, 4, 3),
        blocks: int = 4,
    ) -> None:
        super().__init__()
        self.backbone = HRNetBackbone(widths, modules=modules, blocks=blocks)
        self.decode_head = FCNHead(sum(widths), classes)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image float [B, 3, h, w] -> logits float [B, C, h / 4, w / 4]."""
        return self.decode_head(self.backbone(image))  # type: ignore[no-any-return]
