# SPDX-License-Identifier: Apache-2.0
"""The sparse UNet as a dense one: convolutions on whole grids, masked after each.

What sparse convolution is held against (SparseRefine, table 7): the same weights and results at the
cost of every pixel.

Shape legend: B pictures; H, W grid of a level; N sites of the finest level; C classes. Grids of
features are float32 [B, channels, H, W]; masks are float32 [B, 1, H, W], 1 at the active sites.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.sparse.norm import SiteNorm
from sparserefine_ros.sparse.plan import Level, SparsePlan
from sparserefine_ros.sparse.unet import ResidualBlock, SparseConv, SparseUNet, UNetLevel


class GridUNet(nn.Module):
    """Folded copy of a trained `SparseUNet` on grids, for any engine that convolves grids."""

    def __init__(self, unet: SparseUNet) -> None:
        super().__init__()
        self.stem = _conv(unet.stem)
        self.levels = _GridLevel(unet.levels)
        self.exit = _Activation(unet.norm)
        weight = unet.head.weight
        self.head = nn.Conv2d(weight.shape[1], weight.shape[0], 1, device=weight.device)
        self.head.weight.data.copy_(weight.detach()[:, :, None, None])
        self.head.bias.data.copy_(unet.head.bias.detach())  # type: ignore[union-attr]
        self.requires_grad_(False)

    def forward(self, x: Tensor, *masks: Tensor) -> Tensor:
        """Features [B, I, H, W] and the mask of each level, finest first -> logits [B, C, H, W]."""
        x = self.levels(self.stem(x) * masks[0], masks)
        return self.head(self.exit(x, masks[0]))  # type: ignore[no-any-return]


class _Activation(nn.Module):
    """Norm and ReLU at the active sites."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: SiteNorm) -> None:
        super().__init__()
        scale, shift = norm.folded()
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return F.relu(x * self.scale + self.shift) * mask


class _GridBlock(nn.Module):
    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.enter, self.conv1 = _Activation(block.norm1), _conv(block.conv1)
        self.middle, self.conv2 = _Activation(block.norm2), _conv(block.conv2)
        self.shortcut: nn.Module = nn.Identity()
        if isinstance(block.shortcut, nn.Linear):
            weight = block.shortcut.weight.detach()
            self.shortcut = nn.Conv2d(
                weight.shape[1], weight.shape[0], 1, bias=False, device=weight.device
            )
            self.shortcut.weight.data.copy_(weight[:, :, None, None])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        inner = self.conv1(self.enter(x, mask))
        return self.shortcut(x) + self.conv2(self.middle(inner, mask)) * mask  # type: ignore[no-any-return]


class _GridLevel(nn.Module):
    def __init__(self, level: UNetLevel) -> None:
        super().__init__()
        self.before = nn.ModuleList(_GridBlock(block) for block in _blocks(level.before))
        self.below: _GridLevel | None = None
        if level.below is not None:
            self.below = _GridLevel(level.below)
            self.down_enter, self.down = _Activation(level.down_norm), _conv(level.down, stride=2)
            self.up_enter, self.up = _Activation(level.up_norm), _transposed_conv(level.up)
            self.after = nn.ModuleList(_GridBlock(block) for block in _blocks(level.after))

    def forward(self, x: Tensor, masks: Sequence[Tensor], depth: int = 0) -> Tensor:
        mask = masks[depth]
        for block in self.before:
            x = block(x, mask)
        if self.below is None:
            return x
        x = torch.cat([x, self._below(self.down_enter(x, mask), masks, depth)], 1)
        for block in self.after:
            x = block(x, mask)
        return x

    def _below(self, x: Tensor, masks: Sequence[Tensor], depth: int) -> Tensor:
        assert self.below is not None
        (height, width), (rows, columns) = x.shape[2:], masks[depth + 1].shape[2:]
        if rows == 0 or columns == 0:
            return x.new_zeros(x.shape[0], self.up.out_channels, height, width)
        covered = x[:, :, : 2 * rows + 1, : 2 * columns + 1]
        deep = self.below(self.down(covered) * masks[depth + 1], masks, depth + 1)
        up = self.up(self.up_enter(deep, masks[depth + 1]))
        missing = (0, width - up.shape[3], 0, height - up.shape[2])
        return F.pad(up, missing) * masks[depth]


def _blocks(blocks: nn.ModuleList) -> list[ResidualBlock]:
    return list(blocks)  # type: ignore[arg-type]


def _conv(conv: SparseConv, *, stride: int = 1) -> nn.Conv2d:
    _, inputs, outputs = conv.kernel.shape
    padding, device = 2 - stride, conv.kernel.device
    grid = nn.Conv2d(inputs, outputs, 3, stride, padding, bias=False, device=device)
    # Taps are numbered with the row fastest.
    weight = conv.kernel.detach().view(3, 3, inputs, outputs).permute(3, 2, 1, 0)
    grid.weight.data.copy_(weight)
    return grid


def _transposed_conv(conv: SparseConv) -> nn.ConvTranspose2d:
    _, inputs, outputs = conv.kernel.shape
    device = conv.kernel.device
    grid = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, bias=False, device=device)
    weight = conv.kernel.detach().view(3, 3, inputs, outputs).permute(2, 3, 1, 0)
    grid.weight.data.copy_(weight)
    return grid


def mask_of(level: Level) -> Tensor:
    """Mask of a level, [B, 1, H, W]."""
    batch, height, width = level.grid
    mask = torch.zeros(batch * height * width, device=level.sites.device)
    mask[level.sites] = 1.0
    return mask.view(batch, 1, height, width)


def features_on_grid(features: Tensor, level: Level) -> Tensor:
    """Rows [N, channels] to [B, channels, H, W] in channels-last memory, zero elsewhere."""
    batch, height, width = level.grid
    grid = features.new_zeros(batch * height * width, features.shape[1])
    grid[level.sites] = features
    return grid.view(batch, height, width, features.shape[1]).permute(0, 3, 1, 2)


def rows_of_grid(grid: Tensor, level: Level) -> Tensor:
    """The rows of the sites, [B, channels, H, W] to [N, channels]."""
    picture, place = places_of(level)
    return grid.flatten(2)[picture, :, place]


def places_of(level: Level) -> tuple[Tensor, Tensor]:
    """Picture and place in it, row by row, of each site: int64 [N] both."""
    _, height, width = level.grid
    return level.sites // (height * width), level.sites % (height * width)


class DenseUNet:
    """`GridUNet` in PyTorch behind the interface of the sparse engines.

    Args:
        unet: trained weights.
        dtype: of weights and grids, float32 or bfloat16.
    """

    def __init__(self, unet: SparseUNet, *, dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype
        self._grid = GridUNet(unet).eval().to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, features: Tensor, plan: SparsePlan) -> Tensor:
        """Features float32 [N, inputs] of the plan's finest sites -> logits float32 [N, C]."""
        finest = plan.levels[0]
        masks = [mask_of(level).to(self._dtype) for level in plan.levels]
        logits = self._grid(features_on_grid(features.to(self._dtype), finest), *masks)
        return rows_of_grid(logits, finest).float()
