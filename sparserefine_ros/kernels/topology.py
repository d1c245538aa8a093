# SPDX-License-Identifier: Apache-2.0
"""Expansion of masks, index maps and tables of linked rows on the compiled kernels.

Shape legend: B pictures; H, W grid; h, w low resolution; N sites or pixels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from sparserefine_ros.kernels.library import Kernels, address, integer
from sparserefine_ros.sparse.index import PARITIES

# Places of a tile, as in `tiles.h`.
TILE: Final = 16


def expand_mask(
    kernels: Kernels, mask: Tensor, full_size: tuple[int, int], count: int
) -> tuple[Tensor, Tensor]:
    """Full-resolution pixels of the active blocks and the block of each.

    Args:
        kernels: as `compiled_kernels` returns.
        mask: bool [h, w].
        full_size: (H, W).
        count: N, the number of full-resolution pixels in those blocks.

    Returns:
        Flat indices int64 [N] at full and at low resolution, in row-major order.
    """
    mask = mask.contiguous()
    pixels, low_res_pixels = torch.empty(2, count, dtype=torch.int64)
    found = kernels.call.sr_expand_mask(
        address(mask), *map(integer, (*mask.shape, *full_size)),
        address(pixels), address(low_res_pixels),
    )  # fmt: skip
    assert found == count
    return pixels, low_res_pixels


def find_tiles(kernels: Kernels, sites: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Tiles of 4x4 places, anywhere in a picture or across its edges, that share the sites.

    Args:
        kernels: as `compiled_kernels` returns.
        sites: int64 [N], flat index (b * H + row) * W + column, ascending.
        grid: (B, H, W).

    Returns:
        int32 [tiles, 16], rows of their sites at 4 * column + row of the tile; N for "none", and
        where a site is another tile's.
    """
    sites = sites.to(torch.int64).contiguous()
    # Room for as many as there may be at most.
    tiles = torch.empty(sites.numel(), TILE, dtype=torch.int32)
    found = kernels.call.sr_tiles(
        address(sites), *map(integer, (sites.numel(), *grid[1:])), address(tiles)
    )
    return tiles[:found].clone()


class CompiledIndexMap:
    """A `sparserefine_ros.sparse.index.SiteIndex`.

    Args:
        kernels: as `compiled_kernels` returns.
        sites: int64 [N], flat index (b * H + row) * W + column, ascending.
        grid: (B, H, W).
    """

    def __init__(self, kernels: Kernels, sites: Tensor, grid: tuple[int, int, int]) -> None:
        self._kernels, self._sites, self._grid = kernels, sites.to(torch.int64).contiguous(), grid
        batch, height, width = grid
        self._rows = torch.empty(batch * (height + 2) * (width + 2), dtype=torch.int32)
        kernels.call.sr_index_map(
            address(self._sites), *map(integer, (self.count, *grid)),
            address(self._rows), _threads(),
        )  # fmt: skip

    @property
    def count(self) -> int:
        """N."""
        return self._sites.numel()

    def same_table(self) -> Tensor:
        """See `SiteIndex`."""
        table = torch.empty(self.count, 9, dtype=torch.int32)
        self._kernels.call.sr_same_table(
            address(self._sites), *map(integer, (self.count, *self._grid[1:])),
            address(self._rows), address(table), _threads(),
        )  # fmt: skip
        return table

    def strided_sites(self, size: tuple[int, int]) -> Tensor:
        """See `SiteIndex`."""
        most = min(4 * self.count, self._grid[0] * size[0] * size[1])
        out = torch.empty(most + 1, dtype=torch.int64)
        found = self._kernels.call.sr_strided_sites(
            address(self._sites), *map(integer, (self.count, *self._grid, *size)), address(out)
        )
        return out[:found].clone()

    def down_table(self, coarse: CompiledIndexMap) -> Tensor:
        """See `SiteIndex`."""
        table = torch.empty(coarse.count, 9, dtype=torch.int32)
        self._kernels.call.sr_down_table(
            address(coarse._sites),
            *map(integer, (coarse.count, *coarse._grid[1:], *self._grid[1:])),
            address(self._rows), address(table), _threads(),
        )  # fmt: skip
        return table

    def up_tables(self, coarse: CompiledIndexMap) -> list[tuple[Tensor, Tensor]]:
        """See `SiteIndex`."""
        # Odd coordinates meet one tap, even ones two. Pages that nobody writes take no memory.
        rows = [torch.empty(self.count, dtype=torch.int64) for _ in PARITIES]
        tables = [
            torch.empty(self.count, (2 - row) * (2 - column), dtype=torch.int32)
            for row, column in PARITIES
        ]
        found = torch.empty(len(PARITIES), dtype=torch.int64)
        self._kernels.call.sr_up_tables(
            address(self._sites),
            *map(integer, (self.count, *self._grid[1:], *coarse._grid[1:])),
            address(coarse._rows), _addresses(rows), _addresses(tables), address(found), _threads(),
        )  # fmt: skip
        return [(r[:n], t[:n]) for r, t, n in zip(rows, tables, found.tolist(), strict=True)]


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _threads() -> ctypes.c_int64:
    return integer(torch.get_num_threads())
