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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

TAPS: Final = 9
Bounds = Literal["image", "data"]


@dataclass(frozen=True)
class Gather:
    """Output rows that draw on the same taps.

    Attributes:
        rows: int64 [M], output rows, each in one gather only; None for all rows in order.
        table: int32 [M, T], input row for each tap, or the number of input rows for "none".
        taps: the T kernel taps.
    """

    rows: Tensor | None
    table: Tensor
    taps: tuple[int, ...]


@dataclass(frozen=True)
class Links:
    """All pairs of one convolution.

    Attributes:
        inputs: number of input rows.
        outputs: number of output rows.
        forward: gathers that produce every output row from the input rows.
        backward: gathers that produce every input row from the output rows, through the same taps.
    """

    inputs: int
    outputs: int
    forward: tuple[Gather, ...]
    backward: tuple[Gather, ...]

    def reversed(self) -> Links:
        """The transposed convolution's links."""
        return Links(self.outputs, self.inputs, self.backward, self.forward)

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


@dataclass(frozen=True)
class SparsePlan:
    """Every level, finest first."""

    levels: tuple[Level, ...]


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
    """
    levels = []
    for level in range(depth):
        index = _IndexMap(sites, grid)
        same = _same_links(index)
        if level + 1 == depth:
            levels.append(Level(grid, sites, same, None))
            break
        next_sites, next_grid = _strided_sites(sites, grid, bounds)
        down = _down_links(index, _IndexMap(next_sites, next_grid))
        levels.append(Level(grid, sites, same, down))
        sites, grid = next_sites, next_grid
    return SparsePlan(tuple(levels))


class _IndexMap:
    """Row of each active site on a grid with a border of one inactive cell.

    Attributes:
        rows: int32 [B * (H + 2) * (W + 2)], row of the site or N for "none".
        cells: int64 [N], position of each site in `rows`.
        row, column: int64 [N], coordinates of each site.
    """

    def __init__(self, sites: Tensor, grid: tuple[int, int, int]) -> None:
        batch, height, width = grid
        self.count = sites.numel()
        self.pitch = width + 2
        self.picture = (height + 2) * self.pitch
        line = torch.div(sites, max(1, width), rounding_mode="floor")
        self.column = sites - line * width
        self.batch = torch.div(line, max(1, height), rounding_mode="floor")
        self.row = line - self.batch * height
        self.cells = self.batch * self.picture + (self.row + 1) * self.pitch + self.column + 1
        self.rows = torch.full((batch * self.picture,), self.count, dtype=torch.int32)
        self.rows[self.cells] = torch.arange(self.count, dtype=torch.int32)

    def look_up(self, cells: Tensor, offsets: Sequence[int]) -> Tensor:
        """int32 [M, T]: the row at each cell [M] plus each of T offsets."""
        wanted = cells[:, None] + torch.tensor(offsets)
        return self.rows.index_select(0, wanted.view(-1)).view(-1, len(offsets))

    def offset(self, row: int, column: int) -> int:
        """Distance in `rows` of a step on the grid."""
        return row * self.pitch + column


def _same_links(index: _IndexMap) -> Links:
    taps = tuple(range(TAPS))
    offsets = [index.offset(tap % 3 - 1, tap // 3 - 1) for tap in taps]
    table = index.look_up(index.cells, offsets)
    # Site j is neighbour k of site i exactly when i is neighbour 8 - k of j.
    backward = Gather(None, table, taps[::-1])
    return Links(index.count, index.count, (Gather(None, table, taps),), (backward,))


def _strided_sites(
    sites: Tensor, grid: tuple[int, int, int], bounds: Bounds
) -> tuple[Tensor, tuple[int, int, int]]:
    batch, height, width = grid
    active = torch.zeros(grid, dtype=torch.bool)
    active.view(-1)[sites] = True
    if bounds == "data":
        height = _extent(active.any(2).any(0))
        width = _extent(active.any(1).any(0))
    out_height, out_width = max(0, (height - 1) // 2), max(0, (width - 1) // 2)
    active = active[:, : 2 * out_height + 1, : 2 * out_width + 1]
    rows = active[:, 0:-1:2] | active[:, 1::2] | active[:, 2::2]
    both = rows[:, :, 0:-1:2] | rows[:, :, 1::2] | rows[:, :, 2::2]
    return both.reshape(-1).nonzero().view(-1), (batch, out_height, out_width)


def _extent(active: Tensor) -> int:
    """One more than the last active position."""
    positions = active.nonzero()
    return int(positions[-1]) + 1 if positions.numel() else 0


def _down_links(fine: _IndexMap, coarse: _IndexMap) -> Links:
    corner = coarse.batch * fine.picture + (2 * coarse.row + 1) * fine.pitch + 2 * coarse.column + 1
    offsets = [fine.offset(tap % 3, tap // 3) for tap in range(TAPS)]
    table = fine.look_up(corner, offsets)
    down = Gather(None, table, tuple(range(TAPS)))
    return Links(fine.count, coarse.count, (down,), _up_gathers(fine, coarse))


def _up_gathers(fine: _IndexMap, coarse: _IndexMap) -> tuple[Gather, ...]:
    """Fine sites by parity: even coordinates meet taps 0 and 2, odd ones tap 1 only."""
    gathers = []
    parity = (fine.row % 2) * 2 + fine.column % 2
    for row_parity in (0, 1):
        for column_parity in (0, 1):
            rows = (parity == row_parity * 2 + column_parity).nonzero().view(-1)
            # The coarse site reached through tap t from fine coordinate f is (f - t) / 2.
            row_taps, column_taps = (
                (0, 2) if p == 0 else (1,) for p in (row_parity, column_parity)
            )
            taps = [(r, c) for c in column_taps for r in row_taps]
            cells = (
                fine.batch[rows] * coarse.picture
                + (torch.div(fine.row[rows], 2, rounding_mode="floor") + 1) * coarse.pitch
                + torch.div(fine.column[rows], 2, rounding_mode="floor")
                + 1
            )
            offsets = [coarse.offset(-(r == 2), -(c == 2)) for r, c in taps]
            # A site beyond the last window lands on the border, one cell outside, which is "none".
            table = coarse.look_up(cells, offsets)
            gathers.append(Gather(rows, table, tuple(r + 3 * c for r, c in taps)))
    return tuple(gathers)
