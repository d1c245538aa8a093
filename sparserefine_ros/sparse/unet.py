# SPDX-License-Identifier: Apache-2.0
"""The sparse UNet of SparseRefine: pre-activation residual blocks on selected pixels.

Shape legend: N sites of a level. Features are float32 [N, channels], rows in the plan's site order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparserefine_ros.sparse.convolve import convolve
from sparserefine_ros.sparse.index import TAPS
from sparserefine_ros.sparse.norm import SiteNorm
from sparserefine_ros.sparse.plan import Links, SparsePlan


class SparseConv(nn.Module):
    """3x3 convolution without bias along given links."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(TAPS, inputs, outputs))
        nn.init.normal_(self.kernel, std=(2.0 / (TAPS * inputs)) ** 0.5)

    def forward(self, x: Tensor, links: Links) -> Tensor:
        """[links.inputs, inputs] -> [links.outputs, outputs]."""
        return convolve(x, self.kernel, links)


class ResidualBlock(nn.Module):
    """Shortcut + norm-ReLU-conv-norm-ReLU-conv (He et al., "Identity Mappings", 2016)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = SiteNorm(inputs)
        self.conv1 = SparseConv(inputs, outputs)
        self.norm2 = SiteNorm(outputs)
        self.conv2 = SparseConv(outputs, outputs)
        self.shortcut = (
            nn.Linear(inputs, outputs, bias=False) if inputs != outputs else nn.Identity()
        )

    def forward(self, x: Tensor, links: Links) -> Tensor:
        """[N, inputs] -> [N, outputs]."""
        inner = self.conv1(self.norm1(x), links)
        return self.shortcut(x) + self.conv2(self.norm2(inner), links)  # type: ignore[no-any-return]


class UNetLevel(nn.Module):
    """Blocks of one resolution around everything below it."""

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        width = widths[0]
        self.before = nn.ModuleList(ResidualBlock(width, width) for _ in range(blocks))
        self.below: UNetLevel | None = None
        if len(widths) > 1:
            self.down_norm = SiteNorm(width)
            self.down = SparseConv(width, widths[1])
            self.below = UNetLevel(widths[1:], blocks)
            self.up_norm = SiteNorm(widths[1])
            self.up = SparseConv(widths[1], width)
            self.after = nn.ModuleList(
                ResidualBlock(2 * width if i == 0 else width, width) for i in range(blocks)
            )

    def forward(self, x: Tensor, plan: SparsePlan, level: int = 0) -> Tensor:
        """[N, width] -> [N, width] on the sites of `plan.levels[level]`."""
        here = plan.levels[level]
        for block in self.before:
            x = block(x, here.same)
        if self.below is None or here.down is None:
            return x
        deep = self.below(self.down(self.down_norm(x), here.down), plan, level + 1)
        x = torch.cat([x, self.up(self.up_norm(deep), here.down.reversed())], 1)
        for block in self.after:
            x = block(x, here.same)
        return x


class SparseUNet(nn.Module):
    """Sparse UNet with a linear head.

    The reference's sizes are widths 32, 64, .. 1024 with two blocks: 79.33 M parameters before the
    head for six levels, 19.81 M for five, 4.93 M for four.

    Args:
        inputs: features per pixel.
        classes: C.
        widths: channels per level, finest first.
        blocks: residual blocks on each side of a level.
    """

    def __init__(
        self, inputs: int, classes: int, *, widths: Sequence[int], blocks: int = 2
    ) -> None:
        super().__init__()
        self.depth = len(widths)
        self.stem = SparseConv(inputs, widths[0])
        self.levels = UNetLevel(widths, blocks)
        self.norm = SiteNorm(widths[0])
        self.head = nn.Linear(widths[0], classes)

    def forward(self, features: Tensor, plan: SparsePlan) -> Tensor:
        """Features [N, inputs] of the plan's finest sites -> logits [N, C]."""
        x = self.stem(features, plan.levels[0].same)
        return self.head(self.norm(self.levels(x, plan)))  # type: ignore[no-any-return]
