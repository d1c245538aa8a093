# SPDX-License-Identifier: Apache-2.0
"""SegNeXt: a convolutional attention backbone (MSCAN) with a light Hamburger head.

Guo et al., "SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation", NeurIPS
2022. Modules bear the names of MMSegmentation's checkpoints.

Shape legend: B batch; C classes; h, w input size. Tensors are [B, channels, rows, columns].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.zoo.convolution import PointwiseConv, resize_like
from sparserefine_ros.zoo.hamburger import RANK, Hamburger
from sparserefine_ros.zoo.network import DenseNetwork

_STRIPS: Final = (7, 11, 21)
_LAYER_SCALE: Final = 1e-2


class Size(NamedTuple):
    """A variant of SegNeXt.

    Attributes:
        widths: channels of the stages at strides 4, 8, 16 and 32.
        depths: blocks of each stage.
        head: channels of the head.
        expansions: hidden channels of each stage's MLPs over its width.
    """

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    head: int
    expansions: tuple[int, int, int, int] = (8, 8, 4, 4)


LARGE: Final = Size(widths=(64, 128, 320, 512), depths=(3, 5, 27, 3), head=1024)


class MultiScaleAttention(nn.Module):
    """The input, weighted by depthwise convolutions of it: 5x5, then pairs of strips."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        for i, length in enumerate(_STRIPS):
            across, along = (1, length), (length, 1)
            for j, kernel in enumerate((across, along), start=1):
                padding = (kernel[0] // 2, kernel[1] // 2)
                strip = nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels)
                self.add_module(f"conv{i}_{j}", strip)
        self.conv3 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, rows, columns] -> the same shape."""
        local = self.conv0(x)
        total = local
        for i in range(len(_STRIPS)):
            strip = self.get_submodule(f"conv{i}_1")(local)
            total = total + self.get_submodule(f"conv{i}_2")(strip)
        return self.conv3(total) * x  # type: ignore[no-any-return]


class SpatialAttention(nn.Module):
    """Attention between two 1x1 convolutions, with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.spatial_gating_unit = MultiScaleAttention(channels)
        self.proj_2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, rows, columns] -> the same shape."""
        return x + self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x))))  # type: ignore[no-any-return]


class ConvMLP(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolutions."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, rows, columns] -> the same shape."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each normalised before and scaled after."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.attn = SpatialAttention(channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = ConvMLP(channels, channels * expansion)
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), _LAYER_SCALE))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), _LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, rows, columns] -> the same shape."""
        x = x + self.layer_scale_1[:, None, None] * self.attn(self.norm1(x))
        return x + self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Stem(nn.Module):
    """Two strided convolutions, to stride 4."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.proj = nn.Sequential(
            nn.Conv2d(3, half, 3, 2, 1), nn.BatchNorm2d(half), nn.GELU(),
            nn.Conv2d(half, outputs, 3, 2, 1), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B, outputs, h / 4, w / 4]."""
        return self.proj(image)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """A strided convolution between two stages."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 3, 2, 1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, rows, columns] -> [B, outputs, rows / 2, columns / 2]."""
        return self.norm(self.proj(x))  # type: ignore[no-any-return]


class MSCAN(nn.Module):
    """Features at strides 4, 8, 16 and 32."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self._stages = range(1, len(size.widths) + 1)
        inputs = 0
        for i, width, depth, expansion in zip(
            self._stages, size.widths, size.depths, size.expansions, strict=True
        ):
            entry = Downsample(inputs, width) if inputs else Stem(width)
            self.add_module(f"patch_embed{i}", entry)
            blocks = (Block(width, expansion) for _ in range(depth))
            self.add_module(f"block{i}", nn.Sequential(*blocks))
            self.add_module(f"norm{i}", nn.LayerNorm(width))
            inputs = width

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image float [B, 3, h, w] -> one tensor for each stride."""
        x, levels = image, []
        for i in self._stages:
            x = self.get_submodule(f"block{i}")(self.get_submodule(f"patch_embed{i}")(x))
            norm = self.get_submodule(f"norm{i}")
            x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
            levels.append(x)
        return levels


class LightHamHead(nn.Module):
    """The three coarser levels at stride 8, squeezed, through a Hamburger, classified."""

    def __init__(self, inputs: Sequence[int], channels: int, classes: int, rank: int) -> None:
        super().__init__()
        self.squeeze = PointwiseConv(sum(inputs), channels, norm="gn")
        self.hamburger = Hamburger(channels, rank)
        self.align = PointwiseConv(channels, channels, norm="gn")
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels, finest first -> [B, C, rows, columns] of the finest."""
        x = torch.cat([levels[0], *(resize_like(level, levels[0]) for level in levels[1:])], 1)
        x = self.align(self.hamburger(self.squeeze(x)))
        return self.conv_seg(x)  # type: ignore[no-any-return]


class SegNeXt(DenseNetwork):
    """SegNeXt; logits at an eighth of the input size.

    Args:
        classes: C.
        size: variant; the paper's network is the large one.
        rank: of the Hamburger, which has no weights of it; a checkpoint does not tell.
    """

    output_stride = 8

    def __init__(self, classes: int, *, size: Size = LARGE, rank: int = RANK) -> None:
        super().__init__()
        self.backbone = MSCAN(size)
        self.decode_head = LightHamHead(size.widths[1:], size.head, classes, rank)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image float [B, 3, h, w] -> logits float [B, C, h / 8, w / 8]."""
        _, *coarser = self.backbone(image)
        return self.decode_head(coarser)  # type: ignore[no-any-return]
