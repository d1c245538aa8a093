# SPDX-License-Identifier: Apache-2.0
"""Rows of blocks and of their pixels, in every library that runs here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparserefine_ros.image import Normalisation, Normaliser
from sparserefine_ros.kernels.library import Kernels
from sparserefine_ros.kernels.sampling import (
    SampledColours,
    SampledMap,
    find_blocks,
    repeat_rows,
    sample_rows,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture
def kernels(each_kernels: Kernels) -> Kernels:
    return each_kernels


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_blocks_and_those_of_the_pixels(share: float, kernels: Kernels) -> None:
    mask = torch.rand(13, 29, generator=torch.Generator().manual_seed(1)) < share
    active = mask.view(-1).nonzero().view(-1)
    pixels = active.repeat_interleave(3).flip(0)
    blocks, block_of = find_blocks(kernels, mask, pixels)
    assert torch.equal(blocks, active)
    assert torch.equal(active[block_of.long()], pixels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [14, 16, 33])
@pytest.mark.parametrize("count", [0, 1, 31, 100])
def test_rows_of_several_maps(count: int, width: int, dtype: str, kernels: Kernels) -> None:
    """Columns that no map has are zero; bfloat16 rounds to nearest, ties to even."""
    generator = torch.Generator().manual_seed(width)
    first, second = (torch.randn(k, n, generator=generator) for k, n in ((3, 50), (6, 200)))
    places = [torch.randint(n, (count,), generator=generator) for n in (50, 200)]
    maps = [SampledMap(first, places[0], 2), SampledMap(second, places[1], 7)]
    rows = sample_rows(kernels, maps, count, width, DTYPES[dtype])
    expected = torch.zeros(count, width)
    expected[:, 2:5], expected[:, 7:13] = first[:, places[0]].t(), second[:, places[1]].t()
    assert torch.equal(rows, expected.to(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [(), (0,), (9, 1)])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_rows_of_pixels_with_their_colours(
    order: str, columns: tuple[int, ...], dtype: str, kernels: Kernels
) -> None:
    generator, count = np.random.default_rng(1), 77
    image = generator.integers(0, 256, (8, 10, 3), np.uint8)
    image.setflags(write=False)
    pixels = torch.from_numpy(np.sort(generator.choice(80, count, replace=False)))
    rows = torch.randn(9, 13).to(DTYPES[dtype])
    block_of = torch.from_numpy(generator.integers(0, 9, count).astype(np.int32))
    normaliser = Normaliser(Normalisation(order, (10.0, 20.0, 30.0), (2.0, 3.0, 4.0)))  # type: ignore[arg-type]
    out = torch.full((count, 13), torch.nan, dtype=DTYPES[dtype])
    colours = SampledColours(normaliser, image, pixels, columns)
    repeat_rows(kernels, rows, block_of, colours, out)
    expected = rows[block_of.long()]
    for column in columns:
        values = normaliser.pixels_to_features(image, pixels)
        expected[:, column : column + 3] = values.to(DTYPES[dtype])
    assert torch.equal(out, expected)
    repeat_rows(kernels, rows, block_of, None, out)
    assert torch.equal(out, rows[block_of.long()])
