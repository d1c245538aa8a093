# SPDX-License-Identifier: Apache-2.0
"""Which full-resolution pixels to refine.

Upsampling the dense result by nearest neighbour makes the entropy constant over the block of each
low-resolution pixel, so selecting at low resolution and expanding the blocks is identical to
selecting at full resolution, and cheaper by the square of the scale.

Shape legend: H, W full resolution; h, w low resolution; N selected pixels. Full-resolution row y
lies in the block of low-resolution row floor(y * h / H); columns alike. Nothing need divide evenly.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.kernels.topology import expand_mask
from sparserefine_ros.records import Selection

T = TypeVar("T", bound=np.generic)


def nearest_index(full: int, low: int) -> torch.Tensor:
    """Low-resolution index of each full-resolution row (or column), int64 [full]."""
    return torch.arange(full) * low // full


def expand_map(low_res: NDArray[T], full_size: tuple[int, int]) -> NDArray[T]:
    """Nearest-neighbour upsampling, [..., h, w] -> C-contiguous [..., H, W]."""
    rows = nearest_index(full_size[0], low_res.shape[-2]).numpy()
    columns = nearest_index(full_size[1], low_res.shape[-1]).numpy()
    return low_res.take(columns, axis=-1).take(rows, axis=-2)


def select_above(
    score: torch.Tensor,
    full_size: tuple[int, int],
    *,
    threshold: float,
    max_pixels: int | None = None,
) -> Selection:
    """Select the blocks whose score exceeds the threshold.

    Args:
        score: float32 [h, w] on the CPU, such as the entropy.
        full_size: (H, W).
        threshold: blocks above it are selected.
        max_pixels: pixel budget; the blocks of highest score are kept, in whole blocks, never
            more pixels than this. None for no limit.
    """
    values = score.numpy()
    mask = values > threshold
    candidates = _pixels_of(mask, full_size)
    budget_hit = max_pixels is not None and max_pixels < candidates
    if max_pixels is not None and budget_hit:
        mask = _highest_within(values, mask, full_size, max_pixels)
    return selection_from_mask(
        torch.from_numpy(mask), full_size, candidates=candidates, budget_hit=budget_hit
    )


def selection_from_mask(
    low_res_mask: torch.Tensor,
    full_size: tuple[int, int],
    *,
    candidates: int | None = None,
    budget_hit: bool = False,
) -> Selection:
    """Expand a low-resolution mask, bool [h, w], to full-resolution pixels in row-major order."""
    kernels = compiled_kernels()
    if kernels is not None:
        count = _pixels_of(low_res_mask.numpy(), full_size)
        pixels, low_res_pixels = expand_mask(kernels, low_res_mask, full_size, count)
    else:
        pixels, low_res_pixels = _expand_mask(low_res_mask, full_size)
    return Selection(
        pixels=pixels,
        low_res_pixels=low_res_pixels,
        low_res_mask=low_res_mask,
        full_size=full_size,
        candidates=pixels.numel() if candidates is None else candidates,
        budget_hit=budget_hit,
    )


def selection_from_pixels(
    mask: NDArray[np.bool_], low_res_size: tuple[int, int], *, max_pixels: int | None = None
) -> Selection:
    """Select pixels of a full-resolution mask, bool [H, W], that need not fill whole blocks.

    Args:
        mask: the pixels.
        low_res_size: (h, w).
        max_pixels: so many are kept, spread evenly over the picture; None for no limit.
    """
    full_size = (mask.shape[0], mask.shape[1])
    candidates = np.flatnonzero(mask)
    pixels = candidates
    if max_pixels is not None and max_pixels < candidates.size:
        pixels = candidates[np.linspace(0, candidates.size - 1, max_pixels).astype(np.int64)]
    rows, columns = np.divmod(pixels, full_size[1])
    row_of, column_of = (
        nearest_index(full, low).numpy() for full, low in zip(full_size, low_res_size, strict=True)
    )
    low_res_pixels = row_of[rows] * low_res_size[1] + column_of[columns]
    low_res_mask = np.zeros(low_res_size, np.bool_)
    low_res_mask.reshape(-1)[low_res_pixels] = True
    return Selection(
        pixels=torch.from_numpy(pixels),
        low_res_pixels=torch.from_numpy(low_res_pixels),
        low_res_mask=torch.from_numpy(low_res_mask),
        full_size=full_size,
        candidates=candidates.size,
        budget_hit=pixels.size < candidates.size,
        whole_blocks=False,
    )


def _expand_mask(
    low_res_mask: torch.Tensor, full_size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = low_res_mask.shape
    row_of = nearest_index(full_size[0], height).numpy()
    column_of = nearest_index(full_size[1], width).numpy()
    full_mask = low_res_mask.numpy()[row_of][:, column_of]
    pixels = np.flatnonzero(full_mask)
    rows, columns = np.divmod(pixels, full_size[1])
    low_res_pixels = row_of[rows] * width + column_of[columns]
    return torch.from_numpy(pixels), torch.from_numpy(low_res_pixels)


def block_sides(
    low_res_size: tuple[int, int], full_size: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Heights of the blocks, int64 [h], and their widths, [w]."""
    rows, columns = (
        np.bincount(nearest_index(full, low).numpy(), minlength=low)
        for full, low in zip(full_size, low_res_size, strict=True)
    )
    return rows, columns


def _pixels_of(low_res_mask: NDArray[np.bool_], full_size: tuple[int, int]) -> int:
    """Full-resolution pixels in the blocks of a mask [h, w]."""
    height, width = low_res_mask.shape
    rows, columns = block_sides((height, width), full_size)
    # In float32 several times faster than in integers, and exact up to 2^24 columns. Not as a
    # matrix product: NumPy's runs on threads of its own, which take the cores of later stages.
    mask, widths = low_res_mask.astype(np.float32), columns.astype(np.float32)
    in_row = np.einsum("ij,j->i", mask, widths)
    return int(rows @ in_row.astype(np.int64))


def _highest_within(
    score: NDArray[np.float32],
    mask: NDArray[np.bool_],
    full_size: tuple[int, int],
    max_pixels: int,
) -> NDArray[np.bool_]:
    height, width = mask.shape
    rows, columns = block_sides((height, width), full_size)
    candidates = np.flatnonzero(mask)
    values = score.ravel()[candidates]
    if rows.min() == rows.max() and columns.min() == columns.max():
        kept = candidates[_highest(values, max_pixels // int(rows[0] * columns[0]))]
    else:
        # Stable, so that among equal scores the upper left blocks win on every machine.
        candidates = candidates[np.argsort(-values, kind="stable")]
        areas = rows[candidates // width] * columns[candidates % width]
        kept = candidates[np.cumsum(areas) <= max_pixels]
    result = np.zeros(mask.size, np.bool_)
    result[kept] = True
    return result.reshape(mask.shape)


def _highest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Positions of the `count` highest of more values; among equals the first ones win."""
    if count == 0:
        return np.empty(0, np.int64)
    lowest_kept = np.partition(values, values.size - count)[values.size - count]
    above = np.flatnonzero(values > lowest_kept)
    equal = np.flatnonzero(values == lowest_kept)
    return np.concatenate([above, equal[: count - above.size]])
