# SPDX-License-Identifier: Apache-2.0
"""Winograd's products of convolutions within a level: their weights and tiles, and where they pay.

They take float32, and features with zeros up to whole vectors; see `winograd.h`.

Shape legend: N sites; I input, O output channels.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from sparserefine_ros.kernels.convolution import Weights, pad_channels, padded
from sparserefine_ros.kernels.library import Kernels
from sparserefine_ros.kernels.topology import find_tiles

# Input channels from which on they are faster; fewer leave too little to save.
LEAST_CHANNELS: Final = 32
# Sites in a tile, on average, from which on its 36 products are fewer than those of the sites.
LEAST_SITES: Final = 6
# Sites from which on to transform weights for one convolution, as in training, takes less than it
# saves.
LEAST_SITES_ONCE: Final = 4096

# Where `tiles.h` evaluates polynomials, beside infinity.
_POINTS: Final = (0.0, 0.75, -0.75, 1.5, -1.5)


def _matrix() -> Tensor:
    """The product of G of Lavin and Gray (2016), section 4, with itself, for our points.

    Float64 [36, 9], for rows and columns of a tile, and of taps.
    """
    rows = []
    for point in _POINTS:
        scale = math.prod(point - other for other in _POINTS if other != point)
        rows.append([1.0 / scale, point / scale, point**2 / scale])
    matrix = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)
    return torch.kron(matrix, matrix)


def pack(values: Tensor, kernels: Kernels) -> Weights:
    """From weights [9, I, O] of a 3x3 convolution."""
    inputs, matrix = values.shape[1], _matrix()
    values = pad_channels(F.pad(values.detach(), (0, 0, 0, padded(inputs) - inputs)))
    words, at = values.new_empty(len(matrix) * values[0].numel()), 0
    # A block of outputs at a time: all would not stay in the caches.
    for block in torch.split(values, kernels.block, 2):
        size = len(matrix) * block[0].numel()
        words[at : at + size] = (matrix @ block.double().flatten(1)).flatten()
        at += size
    return Weights(words, values.shape[1], torch.float32, winograd=True)


def tiles_where_they_pay(
    kernels: Kernels, sites: Tensor, grid: tuple[int, int, int]
) -> Tensor | None:
    """As `find_tiles`; None where the sites lie too far apart."""
    tiles = find_tiles(kernels, sites, grid)
    return tiles if sites.numel() >= LEAST_SITES * len(tiles) else None


class SiteTiles:
    """The tiles of a level's sites for training, found when they are first wanted.

    Args:
        sites: int64 [N], flat index (b * H + row) * W + column, ascending.
        grid: (B, H, W).
    """

    def __init__(self, sites: Tensor, grid: tuple[int, int, int]) -> None:
        self._sites, self._grid = sites, grid
        self._found: tuple[Tensor | None] | None = None

    def for_inputs(self, kernels: Kernels, inputs: int) -> Tensor | None:
        """Tiles for weights that serve one convolution; None where Winograd's would not pay.

        Args:
            kernels: as `compiled_kernels` returns.
            inputs: I; features without zeros behind them want whole vectors.
        """
        pays = inputs >= LEAST_CHANNELS and self._sites.numel() >= LEAST_SITES_ONCE
        if not pays or padded(inputs) != inputs:
            return None
        if self._found is None:
            self._found = (tiles_where_they_pay(kernels, self._sites, self._grid),)
        return self._found[0]
