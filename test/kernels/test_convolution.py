# SPDX-License-Identifier: Apache-2.0
"""Products of taps and rows, in every library that runs here, and what threads share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from oracle import grid_of, grid_to_rows, rows_to_grid, sites_of, strided, strided_mask, submanifold
from torch import Tensor

from sparserefine_ros.kernels import convolution, winograd
from sparserefine_ros.kernels.convolution import (
    Activation,
    Convolution,
    Convolver,
    Source,
    Weights,
    pad_channels,
    padded,
    zeros,
)
from sparserefine_ros.kernels.library import Kernels
from sparserefine_ros.kernels.topology import find_tiles
from sparserefine_ros.sparse.convolve import convolve, pick_taps
from sparserefine_ros.sparse.plan import build_plan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture
def kernels(each_kernels: Kernels) -> Kernels:
    return each_kernels


# From taps that all have a link to taps that hardly any has; more rows than a chunk holds. Of 16
# outputs, or where 16 are left, the weights lie in quads if the inputs fill whole registers.
SHAPES = [(3, 5), (40, 70), (130, 16), (300, 150), (16, 16), (48, 9), (32, 80), (272, 16)]


@pytest.mark.parametrize("density", [1.0, 0.9, 0.5, 0.1])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_a_dense_convolution(
    density: float, inputs: int, outputs: int, dtype: str, kernels: Kernels
) -> None:
    """Two parts, a product of each row, a bias and a residual, as where a UNet joins its halves."""
    generator = torch.Generator().manual_seed(inputs)
    mask = torch.rand(2, 1, 37, 61, generator=generator) < density
    (gather,) = (level := build_plan(sites_of(mask), grid_of(mask), 1).levels[0]).same.forward
    parts = [_rounded(level.count, inputs, generator, dtype) for _ in range(2)]
    weights = [_rounded(9 * inputs, outputs, generator, dtype).view(9, inputs, -1) for _ in parts]
    beside = _rounded(inputs, outputs, generator, dtype)
    bias = torch.randn(padded(outputs), generator=generator)
    out = residual = torch.randn(level.count, padded(outputs), generator=generator)
    expected = residual[:, :outputs] + bias[:outputs] + parts[0].double() @ beside.double()
    for part, each in zip(parts, weights, strict=True):
        grid = submanifold(rows_to_grid(part.double(), mask), mask, each.double())
        expected = expected + grid_to_rows(grid, mask)
    sources: list[Source] = [
        (_laid(part, dtype), gather.table, Weights.pack(each, kernels, DTYPES[dtype]))
        for part, each in zip(parts, weights, strict=True)
    ]
    alone = Weights.pack(beside[None], kernels, DTYPES[dtype])
    sources.append((_laid(parts[0], dtype), None, alone))
    run, rounded = Convolver(kernels, 2), out.to(torch.bfloat16)
    for raw in (rounded, out):
        run.add(Convolution(sources, level.count, outputs, raw=raw, bias=bias, residual=residual))
    run.run()
    torch.testing.assert_close(out[:, :outputs].double(), expected, rtol=1e-5, atol=2e-3)
    assert torch.equal(rounded, out.to(torch.bfloat16))


@pytest.mark.parametrize("density", [1.0, 0.3, 0.05])
@pytest.mark.parametrize("dtype", DTYPES)
def test_stride_equals_that_of_a_dense_convolution(
    density: float, dtype: str, kernels: Kernels
) -> None:
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(2, 1, 63, 91, generator=generator) < density
    level, below = build_plan(sites_of(mask), grid_of(mask), 2).levels
    assert level.down is not None
    (gather,) = level.down.forward
    features = _rounded(level.count, 70, generator, dtype)
    weights = _rounded(9 * 70, 90, generator, dtype).view(9, 70, 90)
    out = torch.full((below.count, 96), torch.nan)
    packed = Weights.pack(weights, kernels, DTYPES[dtype])
    run = Convolver(kernels, 2)
    source = (_laid(features, dtype), gather.table, packed)
    run.add(Convolution([source], below.count, 90, raw=out))
    run.run()
    grid = strided(rows_to_grid(features.double(), mask), mask, weights.double(), "image")
    expected = grid_to_rows(grid, strided_mask(mask, "image"))
    torch.testing.assert_close(out[:, :90].double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("outputs", [16, 40])
@pytest.mark.parametrize("tiled", [False, True])
def test_parts_that_share_an_output_and_what_comes_after_them(
    outputs: int, tiled: bool, kernels: Kernels
) -> None:
    """Rows of four kinds, as where a UNet goes up, or Winograd's; then a classifier of each row."""
    generator = torch.Generator().manual_seed(outputs)
    mask = torch.rand(2, 1, 67, 51, generator=generator) < 0.7
    level, below = build_plan(sites_of(mask), grid_of(mask), 2).levels
    assert level.down is not None
    links = level.same if tiled else level.down.reversed()
    rows = level.count if tiled else below.count
    features = torch.randn(rows, 48, generator=generator)
    kernel = torch.randn(9, 48, outputs, generator=generator)
    classify = torch.randn(1, outputs, 11, generator=generator)
    scale, shift = (torch.randn(padded(outputs), generator=generator) for _ in range(2))
    pack = winograd.pack if tiled else Weights.pack
    raw = torch.full((level.count, padded(outputs)), torch.nan)
    active, logits = torch.full_like(raw, torch.nan), torch.full((level.count, 16), torch.nan)
    parts = [
        Convolution(
            [(features, gather.table, pack(pick_taps(kernel, gather.taps), kernels))],
            gather.table.shape[0], outputs, raw=raw, rows=gather.rows,
            into=[(active, Activation(scale, shift))],
            tiles=find_tiles(kernels, level.sites, level.grid) if tiled else None,
        )
        for gather in links.forward
    ]  # fmt: skip
    head = [(active, None, Weights.pack_padded(classify, kernels, torch.float32))]
    run = Convolver(kernels, 2)
    run.add(*parts, then=Convolution(head, level.count, 11, raw=logits))
    run.run()
    expected = convolve(features.double(), kernel.double(), links)
    torch.testing.assert_close(raw[:, :outputs].double(), expected, rtol=1e-5, atol=2e-4)
    expected = (expected * scale[:outputs] + shift[:outputs]).relu()
    torch.testing.assert_close(active[:, :outputs].double(), expected, rtol=1e-5, atol=1e-3)
    expected = expected @ classify[0].double()
    torch.testing.assert_close(logits[:, :11].double(), expected, rtol=1e-4, atol=1e-2)


def _rounded(rows: int, columns: int, generator: torch.Generator, dtype: str) -> Tensor:
    """Float32 values that the type holds."""
    return torch.randn(rows, columns, generator=generator).to(DTYPES[dtype]).float()


def _laid(features: Tensor, dtype: str) -> Tensor:
    """As kernels read them, with zeros up to whole vectors."""
    return pad_channels(features).to(DTYPES[dtype])


def test_threads_that_need_zeros_at_once_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their addresses go to the kernels, so that none may be given up."""
    monkeypatch.setattr(convolution, "_zeros", {})
    plain, threads = torch.zeros, 4
    meeting = threading.Barrier(threads, timeout=10.0)

    def together(channels: int) -> torch.Tensor:
        made = plain(channels)
        meeting.wait()  # all make some before any keeps them
        return made

    monkeypatch.setattr(torch, "zeros", together)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(zeros, [48] * threads))
    assert len({each.data_ptr() for each in found}) == 1
    assert found[0].shape == (48,)
