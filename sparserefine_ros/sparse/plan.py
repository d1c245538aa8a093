# SPDX-License-Identifier: Apache-2.0
"""Topology of sparse convolutions on selected pixels, built once per frame.

A plan holds, for each level of a UNet, the active sites and the links between them: which input
row feeds which output row through which tap of a 3x3 kernel. Pixels lie on a 2-D grid, so a dense
index map answers every neighbour question; no hash is needed.

Kernel taps are numbered as the reference release stores them: k = row_tap + 3 * column_tap, taps
0 .. 2. A stride-1 convolution links an output site to the active inputs at its place + tap - 1. A
strided convolution (stride 2, no padding) links output o to input 2 * o + tap; an output is active
when any of its nine inputs is, so the active set dilates. A transposed convolution uses the pairs
of the strided one, the other way round.

Shape legend: B pictures; H, W grid of a level; N sites of a level; T taps of a gather.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.kernels.topology import CompiledIndexMap
from sparserefine_ros.kernels.winograd import SiteTiles
from sparserefine_ros.sparse.index import PARITIES, TAPS, IndexMap, SiteIndex

Bounds = Literal["image", "data"]


@dataclass(frozen=True)
class Gather:
    """Output rows that draw on the same taps.

    Attributes:
        rows: int64 [M], ascending output rows, each in one gather only; None for all in order.
        table: int32 [M, T], input row for each tap, or the number of input rows for "none".
        taps: the T kernel taps.
    """

    rows: Tensor | None
    table: Tensor
    taps: tuple[int, ...]

    def to(self, device: torch.device) -> Gather:
        """The same on another device."""
        rows = None if self.rows is None else self.rows.to(device)
        return Gather(rows, self.table.to(device), self.taps)


@dataclass(frozen=True)
class Links:
    """All pairs of one convolution.

    Attributes:
        inputs: number of input rows.
        outputs: number of output rows.
        forward: gathers that produce every output row from the input rows.
        backward: gathers that produce every input row from the output rows, through the same taps.
        tiles: of sites that are linked among themselves, for training on the CPU; None of others.
            They follow from the sites.
    """

    inputs: int
    outputs: int
    forward: tuple[Gather, ...]
    backward: tuple[Gather, ...]
    tiles: SiteTiles | None = field(default=None, compare=False)

    def reversed(self) -> Links:
        """The transposed convolution's links."""
        return Links(self.outputs, self.inputs, self.backward, self.forward, self.tiles)

    def to(self, device: torch.device) -> Links:
        """The same on another device."""
        forward, backward = (
            tuple(gather.to(device) for gather in gathers)
            for gathers in (self.forward, self.backward)
        )
        return Links(self.inputs, self.outputs, forward, backward)

    def pairs(self) -> int:
        """Number of existing (input, output, tap) triples."""
        return sum(int((gather.table < self.inputs).sum()) for gather in self.forward)


@dataclass(frozen=True)
class Level:
    """One resolution of the plan.

    Attributes:
        grid: (B, H, W).
        sites: int64 [N], flat index (b * H + row) * W + column, ascending.
        same: links of stride-1 convolutions.
        down: links to the next level; None at the last one.
    """

    grid: tuple[int, int, int]
    sites: Tensor
    same: Links
    down: Links | None

    @property
    def count(self) -> int:
        """N."""
        return self.sites.numel()

    def to(self, device: torch.device) -> Level:
        """The same on another device."""
        down = None if self.down is None else self.down.to(device)
        sites, same = self.sites.to(device), self.same.to(device)
        same = replace(same, tiles=_tiles(sites, self.grid))
        return Level(self.grid, sites, same, down)


@dataclass(frozen=True)
class SparsePlan:
    """Every level, finest first."""

    levels: tuple[Level, ...]

    def to(self, device: torch.device) -> SparsePlan:
        """The same on another device."""
        return SparsePlan(tuple(level.to(device) for level in self.levels))


def build_plan(
    sites: Tensor, grid: tuple[int, int, int], depth: int, *, bounds: Bounds = "image"
) -> SparsePlan:
    """Build the plan of a UNet with `depth` levels.

    Args:
        sites: int64 [N], distinct flat indices (b * H + row) * W + column, ascending.
        grid: (B, H, W).
        depth: number of levels, at least 1.
        bounds: an output of a strided convolution needs its whole 3x3 window inside the image
            ("image"), or inside the bounding box of all active sites ("data", as the reference
            release does). Sites beyond the last window receive zeros from below.

    Raises:
        ValueError: a site lies outside the grid.
    """
    cells = math.prod(grid)
    if sites.numel() and not (int(sites.min()) >= 0 and int(sites.max()) < cells):
        raise ValueError(
            f"expected sites of 0 .. {cells - 1} for a grid of {grid}, "
            f"got {int(sites.min())} .. {int(sites.max())}"
        )
    levels = []
    index = _index(sites, grid)
    for _ in range(depth - 1):
        size = _strided_size(sites, grid, bounds)
        next_sites, next_grid = index.strided_sites(size), (grid[0], *size)
        next_index = _index(next_sites, next_grid)
        same = _same_links(index, sites, grid)
        levels.append(Level(grid, sites, same, _down_links(index, next_index)))
        sites, grid, index = next_sites, next_grid, next_index
    levels.append(Level(grid, sites, _same_links(index, sites, grid), None))
    return SparsePlan(tuple(levels))


def _index(sites: Tensor, grid: tuple[int, int, int]) -> SiteIndex:
    kernels = compiled_kernels() if sites.device.type == "cpu" else None
    return IndexMap(sites, grid) if kernels is None else CompiledIndexMap(kernels, sites, grid)


def _same_links(index: SiteIndex, sites: Tensor, grid: tuple[int, int, int]) -> Links:
    taps = tuple(range(TAPS))
    table = index.same_table()
    # Site j is neighbour k of site i exactly when i is neighbour 8 - k of j.
    backward = Gather(None, table, taps[::-1])
    return Links(
        index.count, index.count, (Gather(None, table, taps),), (backward,), _tiles(sites, grid)
    )


def _tiles(sites: Tensor, grid: tuple[int, int, int]) -> SiteTiles | None:
    return SiteTiles(sites, grid) if sites.device.type == "cpu" else None


def _strided_size(sites: Tensor, grid: tuple[int, int, int], bounds: Bounds) -> tuple[int, int]:
    _, height, width = grid
    if bounds == "data" and sites.numel():
        height = int((sites // width % height).max()) + 1
        width = int((sites % width).max()) + 1
    elif bounds == "data":
        height = width = 0
    return max(0, (height - 1) // 2), max(0, (width - 1) // 2)


def _down_links(fine: SiteIndex, coarse: SiteIndex) -> Links:
    down = Gather(None, fine.down_table(coarse), tuple(range(TAPS)))
    return Links(fine.count, coarse.count, (down,), tuple(_up_gathers(fine, coarse)))


def _up_gathers(fine: SiteIndex, coarse: SiteIndex) -> Iterator[Gather]:
    """Fine sites by parity, see `SiteIndex.up_tables`."""
    for parity, (rows, table) in zip(PARITIES, fine.up_tables(coarse), strict=True):
        row_taps, column_taps = ((1,) if odd else (0, 2) for odd in parity)
        taps = tuple(row + 3 * column for column in column_taps for row in row_taps)
        yield Gather(rows, table, taps)
