# SPDX-License-Identifier: Apache-2.0
"""Dense reference of sparse convolution: torch's convolutions on whole grids, with masks.

It shares no code with the package; only the names of a trained network's weights are common ground.

Shape legend: B pictures; H, W grid; C channels; N active sites in row-major order. Grids of values
are [B, C, H, W], masks bool [B, 1, H, W], kernels [9, inputs, outputs].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-5  # torch's default for batch norm


def dense_weight(kernel: Tensor) -> Tensor:
    """[9, I, O], row tap fastest -> conv2d's [O, I, 3, 3]."""
    return kernel.view(3, 3, kernel.shape[1], kernel.shape[2]).permute(3, 2, 1, 0)


def rows_to_grid(rows: Tensor, mask: Tensor) -> Tensor:
    """[N, C] at the active sites -> [B, C, H, W], zero elsewhere."""
    batch, _, height, width = mask.shape
    grid = rows.new_zeros(batch, height, width, rows.shape[1])
    return grid.masked_scatter(mask[:, 0, :, :, None], rows).permute(0, 3, 1, 2)


def grid_to_rows(grid: Tensor, mask: Tensor) -> Tensor:
    """[B, C, H, W] -> [N, C] at the active sites."""
    return grid.permute(0, 2, 3, 1)[mask[:, 0]]


def submanifold(x: Tensor, mask: Tensor, kernel: Tensor) -> Tensor:
    """3x3, stride 1: outputs at the active inputs only."""
    if 0 in mask.shape:
        return x.new_zeros(x.shape[0], kernel.shape[2], *x.shape[2:]) + 0 * kernel.sum()
    return F.conv2d(x * mask, dense_weight(kernel), padding=1) * mask


def windows(mask: Tensor, bounds: str) -> tuple[int, int]:
    """Rows and columns of whole 3x3 windows at stride 2 inside the image or the active data."""
    height, width = mask.shape[2:]
    if bounds == "data":
        active = mask.nonzero()
        height, width = (int(active[:, i].max()) + 1 if len(active) else 0 for i in (2, 3))
    return max(0, (height - 3) // 2 + 1), max(0, (width - 3) // 2 + 1)


def strided_mask(mask: Tensor, bounds: str) -> Tensor:
    """Sites of the next level: windows with at least one active input."""
    rows, columns = windows(mask, bounds)
    if rows == 0 or columns == 0:
        return mask.new_zeros(mask.shape[0], 1, rows, columns)
    covered = mask[:, :, : 2 * rows + 1, : 2 * columns + 1]
    return F.max_pool2d(covered.float(), 3, 2) > 0


def strided(x: Tensor, mask: Tensor, kernel: Tensor, bounds: str) -> Tensor:
    """3x3, stride 2, no padding, onto the sites of the next level."""
    coarse = strided_mask(mask, bounds)
    rows, columns = coarse.shape[2:]
    if rows == 0 or columns == 0:
        return x.new_zeros(x.shape[0], kernel.shape[2], rows, columns) + 0 * kernel.sum()
    covered = (x * mask)[:, :, : 2 * rows + 1, : 2 * columns + 1]
    return F.conv2d(covered, dense_weight(kernel), stride=2) * coarse


def transposed(y: Tensor, coarse: Tensor, kernel: Tensor, mask: Tensor) -> Tensor:
    """3x3, stride 2, from the sites of the next level back onto those of `mask`."""
    out = y.new_zeros(y.shape[0], kernel.shape[2], *mask.shape[2:])
    if 0 in coarse.shape:
        return out + 0 * kernel.sum()
    weight = kernel.view(3, 3, kernel.shape[1], kernel.shape[2]).permute(2, 3, 1, 0)
    spread = F.conv_transpose2d(y * coarse, weight, stride=2)
    missing = (mask.shape[3] - spread.shape[3], mask.shape[2] - spread.shape[2])
    return F.pad(spread, (0, missing[0], 0, missing[1])) * mask


class DenseUNet:
    """The sparse UNet's arithmetic on whole grids.

    Args:
        weights: the sparse network's parameters and buffers by name.
        bounds: "image" or "data", see `windows`.
        training: batch norm with the statistics of the active sites instead of the stored ones.
    """

    def __init__(self, weights: Mapping[str, Tensor], bounds: str, *, training: bool) -> None:
        self._weights, self._bounds, self._training = weights, bounds, training

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, inputs, H, W] -> logits [B, C, H, W], zero where inactive."""
        x = submanifold(x, mask, self._weights["stem.kernel"])
        x = self._norm(self._level(x, mask, "levels."), mask, "norm.")
        logits = torch.einsum("bihw,oi->bohw", x, self._weights["head.weight"])
        return (logits + self._weights["head.bias"][:, None, None]) * mask

    def _level(self, x: Tensor, mask: Tensor, at: str) -> Tensor:
        x = self._blocks(x, mask, f"{at}before.")
        if f"{at}down.kernel" not in self._weights:
            return x
        coarse = strided_mask(mask, self._bounds)
        entered = self._norm(x, mask, f"{at}down_norm.")
        deep = strided(entered, mask, self._weights[f"{at}down.kernel"], self._bounds)
        deep = self._level(deep, coarse, f"{at}below.")
        left = self._norm(deep, coarse, f"{at}up_norm.")
        up = transposed(left, coarse, self._weights[f"{at}up.kernel"], mask)
        return self._blocks(torch.cat([x, up], 1), mask, f"{at}after.")

    def _blocks(self, x: Tensor, mask: Tensor, at: str) -> Tensor:
        block = 0
        while f"{at}{block}.conv1.kernel" in self._weights:
            x = self._residual(x, mask, f"{at}{block}.")
            block += 1
        return x

    def _residual(self, x: Tensor, mask: Tensor, at: str) -> Tensor:
        inner = self._norm(x, mask, f"{at}norm1.")
        inner = submanifold(inner, mask, self._weights[f"{at}conv1.kernel"])
        inner = self._norm(inner, mask, f"{at}norm2.")
        inner = submanifold(inner, mask, self._weights[f"{at}conv2.kernel"])
        shortcut = self._weights.get(f"{at}shortcut.weight")
        return inner + (x if shortcut is None else torch.einsum("bihw,oi->bohw", x, shortcut))

    def _norm(self, x: Tensor, mask: Tensor, at: str) -> Tensor:
        """Batch norm over the active sites, ReLU, zero elsewhere."""
        mean, variance = self._weights[f"{at}running_mean"], self._weights[f"{at}running_var"]
        count = int(mask.sum())
        if self._training and count > 1:
            mean = (x * mask).sum((0, 2, 3)) / count
            variance = ((x - mean[:, None, None]) ** 2 * mask).sum((0, 2, 3)) / count
        scale = self._weights[f"{at}weight"] / (variance + EPSILON).sqrt()
        shift = self._weights[f"{at}bias"] - mean * scale
        return F.relu(x * scale[:, None, None] + shift[:, None, None]) * mask


def _random_mask(shape: tuple[int, int, int], share: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape[0], 1, *shape[1:], generator=generator) < share


def _mask_of(shape: tuple[int, int, int], *sites: tuple[int, int, int]) -> Tensor:
    mask = torch.zeros(shape[0], 1, *shape[1:], dtype=torch.bool)
    for batch, row, column in sites:
        mask[batch, 0, row, column] = True
    return mask


def example_masks() -> dict[str, Tensor]:
    """Masks that sparse convolution must cope with, by name."""
    frame = torch.ones(1, 1, 10, 13, dtype=torch.bool)
    frame[:, :, 1:-1, 1:-1] = False
    half_empty = _random_mask((2, 8, 9), 0.4, 5)
    half_empty[1] = False
    inner = torch.zeros(1, 1, 15, 14, dtype=torch.bool)
    inner[:, :, 3:8, 2:9] = _random_mask((1, 5, 7), 0.6, 6)
    return {
        "odd": _random_mask((1, 13, 17), 0.3, 1),
        "even": _random_mask((1, 12, 16), 0.3, 2),
        "odd-even-dense": _random_mask((1, 11, 14), 0.8, 3),
        "sparse": _random_mask((1, 21, 18), 0.04, 4),
        "batch": _random_mask((3, 9, 11), 0.3, 7),
        "batch-half-empty": half_empty,
        "inner-block": inner,
        "border-frame": frame,
        "full": torch.ones(1, 1, 9, 8, dtype=torch.bool),
        "empty": torch.zeros(2, 1, 7, 6, dtype=torch.bool),
        "one-middle": _mask_of((1, 7, 9), (0, 3, 4)),
        "one-first": _mask_of((1, 8, 8), (0, 0, 0)),
        "one-last": _mask_of((1, 8, 8), (0, 7, 7)),
        "corners": _mask_of((1, 7, 8), (0, 0, 0), (0, 0, 7), (0, 6, 0), (0, 6, 7)),
        "one-row": _random_mask((1, 1, 12), 0.6, 8),
        "one-column": _random_mask((2, 11, 1), 0.6, 9),
        "two-by-two": torch.ones(1, 1, 2, 2, dtype=torch.bool),
        "one-pixel-picture": torch.ones(1, 1, 1, 1, dtype=torch.bool),
        "three-by-three": torch.ones(2, 1, 3, 3, dtype=torch.bool),
    }


def sites_of(mask: Tensor) -> Tensor:
    """Flat indices (b * H + row) * W + column of the active sites, int64 [N]."""
    return mask.reshape(-1).nonzero().view(-1)


def grid_of(mask: Tensor) -> tuple[int, int, int]:
    """(B, H, W)."""
    return mask.shape[0], mask.shape[2], mask.shape[3]
