# SPDX-License-Identifier: Apache-2.0
"""Where the active sites of a grid are, and which of them are neighbours.

Taps are numbered as in `sparserefine_ros.sparse.plan`: k = row_tap + 3 * column_tap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

TAPS: Final = 9

# Of row and column, in the order of `SiteIndex.up_tables`.
PARITIES: Final = ((0, 0), (0, 1), (1, 0), (1, 1))


class SiteIndex(Protocol):
    """Finds neighbours among the N sites of a grid (B, H, W). Missing ones are row N."""

    @property
    def count(self) -> int:
        """N."""

    def same_table(self) -> Tensor:
        """int32 [N, 9]: the site at each site's place + tap - 1."""

    def strided_sites(self, size: tuple[int, int]) -> Tensor:
        """Sites, on the next level's grid of `size`, any of whose 3x3 windows is active."""

    def down_table(self, coarse: Self) -> Tensor:
        """int32 [M, 9]: the site at 2 * place + tap of each of M coarse sites."""

    def up_tables(self, coarse: Self) -> Sequence[tuple[Tensor, Tensor]]:
        """For each parity its sites, int64 [M], and the coarse ones they draw on, int32 [M, T].

        Even coordinates meet taps 0 and 2, odd ones tap 1 only; through tap t the coordinate f
        reaches (f - t) / 2. Row taps run fastest.
        """


class IndexMap:
    """A `SiteIndex` on PyTorch: the row of each site on a grid with a border of one cell.

    Args:
        sites: int64 [N], flat index (b * H + row) * W + column, ascending.
        grid: (B, H, W).
    """

    def __init__(self, sites: Tensor, grid: tuple[int, int, int]) -> None:
        batch, height, width = grid
        self.count = sites.numel()
        self._sites, self._grid = sites, grid
        self._pitch = width + 2
        self._picture = (height + 2) * self._pitch
        line = torch.div(sites, max(1, width), rounding_mode="floor")
        self._column = sites - line * width
        self._batch = torch.div(line, max(1, height), rounding_mode="floor")
        self._row = line - self._batch * height
        cells = self._cells(self._batch, self._row, self._column)
        whole = (batch * self._picture,)
        self._rows = torch.full(whole, self.count, dtype=torch.int32, device=sites.device)
        self._rows[cells] = torch.arange(self.count, dtype=torch.int32, device=sites.device)

    def _cells(self, batch: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return batch * self._picture + (row + 1) * self._pitch + column + 1

    def _look_up(self, cells: Tensor, steps: Sequence[tuple[int, int]]) -> Tensor:
        """int32 [M, T]: the row at each cell [M] plus each of T steps in rows and columns."""
        offsets = cells.new_tensor([row * self._pitch + column for row, column in steps])
        wanted = cells[:, None] + offsets
        return self._rows.index_select(0, wanted.view(-1)).view(-1, len(steps))

    def same_table(self) -> Tensor:
        """See `SiteIndex`."""
        cells = self._cells(self._batch, self._row, self._column)
        return self._look_up(cells, [(tap % 3 - 1, tap // 3 - 1) for tap in range(TAPS)])

    def strided_sites(self, size: tuple[int, int]) -> Tensor:
        """See `SiteIndex`."""
        active = torch.zeros(self._grid, dtype=torch.bool, device=self._sites.device)
        active.view(-1)[self._sites] = True
        active = active[:, : 2 * size[0] + 1, : 2 * size[1] + 1]
        rows = active[:, 0:-1:2] | active[:, 1::2] | active[:, 2::2]
        both = rows[:, :, 0:-1:2] | rows[:, :, 1::2] | rows[:, :, 2::2]
        return both.reshape(-1).nonzero().view(-1)

    def down_table(self, coarse: IndexMap) -> Tensor:
        """See `SiteIndex`."""
        corner = self._cells(coarse._batch, 2 * coarse._row, 2 * coarse._column)
        return self._look_up(corner, [(tap % 3, tap // 3) for tap in range(TAPS)])

    def up_tables(self, coarse: IndexMap) -> list[tuple[Tensor, Tensor]]:
        """See `SiteIndex`."""
        return [self._up_table(coarse, parity) for parity in PARITIES]

    def _up_table(self, coarse: IndexMap, parity: tuple[int, int]) -> tuple[Tensor, Tensor]:
        of_parity = (self._row % 2 == parity[0]) & (self._column % 2 == parity[1])
        rows = of_parity.nonzero().view(-1)
        # A site beyond the last window lands on the border, one cell outside, which is "none".
        cells = coarse._cells(
            self._batch[rows],
            torch.div(self._row[rows], 2, rounding_mode="floor"),
            torch.div(self._column[rows], 2, rounding_mode="floor"),
        )
        row_steps, column_steps = ((0,) if odd else (0, -1) for odd in parity)
        steps = [(row, column) for column in column_steps for row in row_steps]
        return rows, coarse._look_up(cells, steps)
