# SPDX-License-Identifier: Apache-2.0
"""Tiles and Winograd's products, in every library that runs here, against a dense convolution."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracle import example_masks, grid_of, grid_to_rows, rows_to_grid, sites_of
from torch import Tensor
from torch.nn import functional as F

from sparserefine_ros.kernels import winograd
from sparserefine_ros.kernels.convolution import Convolution, Convolver, Weights, padded
from sparserefine_ros.kernels.library import Kernels
from sparserefine_ros.kernels.topology import find_tiles
from sparserefine_ros.sparse.plan import Level, build_plan

MASKS = example_masks()


@pytest.fixture
def kernels(each_kernels: Kernels) -> Kernels:
    return each_kernels


def finest(mask: Tensor) -> Level:
    return build_plan(sites_of(mask), grid_of(mask), 1).levels[0]


def tiles_of(level: Level, kernels: Kernels) -> Tensor:
    return find_tiles(kernels, level.sites, level.grid)


@pytest.mark.parametrize("name", MASKS)
def test_every_site_lies_in_one_tile(name: str, kernels: Kernels) -> None:
    level = finest(MASKS[name])
    _, height, width = level.grid
    found = tiles_of(level, kernels)
    assert sorted(found[found < level.count].tolist()) == list(range(level.count))
    for tile in found.tolist():
        corners = set()
        for place, row in enumerate(tile):
            if row < level.count:
                picture, pixel = divmod(int(level.sites[row]), height * width)
                y, x = divmod(pixel, width)
                corners.add((picture, y - place % 4, x - place // 4))
        assert len(corners) == 1


def test_tiles_lie_where_the_sites_are(kernels: Kernels) -> None:
    """Not on a grid: squares of 4x4 take a tile each, wherever they are."""
    for y, x in itertools.product(range(5), range(5)):
        mask = torch.zeros(2, 1, 13, 21, dtype=torch.bool)
        mask[0, 0, y : y + 4, x : x + 4] = True
        mask[0, 0, y + 3 : y + 7, x + 7 : x + 11] = True
        mask[1, 0, y : y + 4, x + 12 : x + 16] = True
        tiles = tiles_of(finest(mask), kernels)
        assert tiles.shape == (3, 16)
        assert int(tiles.max()) < 48


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(3, 5), (32, 16), (46, 33), (70, 150), (180, 170), (530, 40), (1030, 16)],
    ids=str,
)
def test_equals_a_dense_convolution(
    inputs: int, outputs: int, threads: int, kernels: Kernels
) -> None:
    mask = torch.rand(2, 1, 37, 61, generator=torch.Generator().manual_seed(inputs)) < 0.6
    compare(mask, inputs, outputs, threads, kernels)


@pytest.mark.parametrize("count", [1, 5, 71, 72, 119])
def test_large_weights_with_so_many_tiles(count: int, kernels: Kernels) -> None:
    """Which take few chunks, as many tiles in each as there is room for, and share the columns."""
    mask = torch.zeros(1, 1, 7, 4 * count + 3, dtype=torch.bool)
    mask[..., 2:6, 1:-2] = True
    assert len(tiles_of(finest(mask), kernels)) == count
    compare(mask, 180, 170, 3, kernels)


def compare(mask: Tensor, inputs: int, outputs: int, threads: int, kernels: Kernels) -> None:
    """Winograd's products with a residual against a dense convolution."""
    level, generator = finest(mask), torch.Generator().manual_seed(inputs)
    (gather,) = level.same.forward
    features = torch.randn(level.count, inputs, generator=generator)
    weights = torch.randn(9, inputs, outputs, generator=generator)
    residual = torch.randn(level.count, padded(outputs), generator=generator)
    out = residual.clone()
    source = (widened(features), gather.table, winograd.pack(weights, kernels))
    tiles = tiles_of(level, kernels)
    run = Convolver(kernels, threads)
    run.add(Convolution([source], level.count, outputs, raw=out, residual=out, tiles=tiles))
    run.run()
    expected = dense(features, weights, mask) + residual[:, :outputs]
    error = (out[:, :outputs] - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 2e-6 * max(1.0, inputs / 256) ** 0.5  # of long sums in float32
    torch.testing.assert_close(out[:, :outputs], expected, rtol=5e-5, atol=5e-5 * inputs**0.5)


# With 16 inputs and outputs the weights of what is beside lie in quads.
@pytest.mark.parametrize(("inputs", "outputs"), [(9, 20), (16, 16)], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_parts_and_what_is_beside_them(
    name: str, inputs: int, outputs: int, kernels: Kernels
) -> None:
    """Two sources and a product of each row, as where a UNet joins its halves."""
    mask, generator = MASKS[name], torch.Generator().manual_seed(2)
    level = finest(mask)
    (gather,) = level.same.forward
    parts = [torch.randn(level.count, inputs, generator=generator) for _ in range(2)]
    weights = [torch.randn(9, inputs, outputs, generator=generator) for _ in range(2)]
    beside = torch.randn(1, inputs, outputs, generator=generator)
    bias = torch.randn(padded(outputs), generator=generator)
    out = torch.full((level.count, padded(outputs)), torch.nan)
    sources = [
        (widened(part), gather.table, winograd.pack(each, kernels))
        for part, each in zip(parts, weights, strict=True)
    ]
    sources.append((widened(parts[0]), None, Weights.pack(beside, kernels)))
    tiles = tiles_of(level, kernels)
    run = Convolver(kernels, 2)
    run.add(Convolution(sources, level.count, outputs, raw=out, bias=bias, tiles=tiles))
    run.run()
    expected = parts[0] @ beside[0] + bias[:outputs]
    for part, each in zip(parts, weights, strict=True):
        expected = expected + dense(part, each, mask)
    torch.testing.assert_close(out[:, :outputs], expected, rtol=1e-4, atol=1e-4)


def widened(features: Tensor) -> Tensor:
    """With zeros up to whole vectors."""
    return F.pad(features, (0, padded(features.shape[1]) - features.shape[1]))


def dense(features: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """The same convolution of the whole grid, at the sites, in float64."""
    taps = {tap: weights[i] for i, tap in enumerate(itertools.product(range(3), range(3)))}
    rows = [torch.stack([taps[x, y].t() for x in range(3)], -1) for y in range(3)]
    kernel = torch.stack(rows, -2).double()  # taps count rows first
    grid = F.conv2d(rows_to_grid(features.double(), mask), kernel, padding=1)
    return grid_to_rows(grid, mask).float()
