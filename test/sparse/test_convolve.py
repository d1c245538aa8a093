# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import oracle
import pytest
import torch
from oracle import example_masks, grid_of, grid_to_rows, rows_to_grid, sites_of
from torch import Tensor

from sparserefine_ros.kernels import winograd
from sparserefine_ros.kernels.library import PYTORCH, Kernels, kernels_from
from sparserefine_ros.sparse.convolve import convolve
from sparserefine_ros.sparse.plan import Bounds, Links, build_plan

pytestmark = pytest.mark.usefixtures("poisoned_memory")

MASKS = example_masks()
INPUTS, OUTPUTS = 3, 4

# Both sum few products, in different orders. In float32 a gradient sums over the sites too, and
# Winograd's products lose some of the last bits.
TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 2e-4},
}


@pytest.fixture(params=["float64", "float32", "float32-pytorch"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """float32 runs on the compiled kernels where there are any, and on PyTorch."""
    if request.param == "float32":
        request.getfixturevalue("kernels")
    with kernels_from(None if request.param == "float32" else PYTORCH):
        yield torch.float64 if request.param == "float64" else torch.float32


def random_tensors(
    rows: int, dtype: torch.dtype = torch.float64, channels: tuple[int, int] = (INPUTS, OUTPUTS)
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    features = torch.randn(rows, channels[0], generator=generator, dtype=dtype)
    kernel = torch.randn(9, *channels, generator=generator, dtype=dtype)
    return features.requires_grad_(), kernel.requires_grad_()


def compare(
    links: Links,
    source: Tensor,
    target: Tensor,
    dense: Any,
    dtype: torch.dtype,
    channels: tuple[int, int] = (INPUTS, OUTPUTS),
) -> None:
    """Hold `convolve` along `links` against `dense(grid, kernel)`, forward and backward."""
    features, kernel = random_tensors(int(source.sum()), dtype, channels)
    result = convolve(features, kernel, links)
    assert result.dtype == dtype
    expected = grid_to_rows(dense(rows_to_grid(features, source), kernel), target)
    torch.testing.assert_close(result, expected, **TOLERANCES[dtype])
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = torch.autograd.grad((result * weights).sum(), (features, kernel))
    wanted = torch.autograd.grad((expected * weights).sum(), (features, kernel), allow_unused=True)
    for gradient, reference in zip(found, wanted, strict=True):
        expected_gradient = torch.zeros_like(gradient) if reference is None else reference
        torch.testing.assert_close(gradient, expected_gradient, **TOLERANCES[dtype])


@pytest.mark.parametrize("name", MASKS)
def test_submanifold(name: str, dtype: torch.dtype) -> None:
    mask = MASKS[name]
    links = build_plan(sites_of(mask), grid_of(mask), 1).levels[0].same
    compare(links, mask, mask, lambda x, kernel: oracle.submanifold(x, mask, kernel), dtype)


@pytest.mark.parametrize("channels", [(1, 1), (9, 16), (16, 17), (21, 48), (8, 64)])
def test_any_number_of_channels(channels: tuple[int, int], dtype: torch.dtype) -> None:
    mask = torch.rand(2, 1, 37, 41, generator=torch.Generator().manual_seed(5)) < 0.6
    links = build_plan(sites_of(mask), grid_of(mask), 1).levels[0].same
    compare(
        links, mask, mask, lambda x, kernel: oracle.submanifold(x, mask, kernel), dtype, channels
    )


@pytest.mark.parametrize("channels", [(16, 17), (32, 48)])
@pytest.mark.parametrize("name", MASKS)
def test_winograds_products(
    name: str, channels: tuple[int, int], kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which else only more sites and channels take."""
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 16)
    monkeypatch.setattr(winograd, "LEAST_SITES", 0)
    monkeypatch.setattr(winograd, "LEAST_SITES_ONCE", 0)
    mask = MASKS[name]
    links = build_plan(sites_of(mask), grid_of(mask), 1).levels[0].same
    assert links.tiles is not None
    assert links.tiles.for_inputs(kernels, channels[0]) is not None
    dense = functools.partial(oracle.submanifold, mask=mask)
    with kernels_from(None):
        compare(
            links, mask, mask, lambda x, kernel: dense(x, kernel=kernel), torch.float32, channels
        )


@pytest.mark.parametrize(
    ("inputs", "rows", "taken"), [(32, 5000, True), (40, 5000, False), (32, 4000, False)]
)
def test_winograds_products_where_they_pay(
    inputs: int, rows: int, taken: bool, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are packed for each convolution: enough sites, and whole vectors of channels."""
    packed, pack = [], winograd.pack
    monkeypatch.setattr(
        winograd, "pack", lambda *given: packed.append(given[0].shape) or pack(*given)
    )
    mask = torch.zeros(1, 1, 80, 80, dtype=torch.bool)
    mask.view(-1)[:rows] = True
    links = build_plan(sites_of(mask), grid_of(mask), 1).levels[0].same
    features, kernel = random_tensors(rows, torch.float32, (inputs, 32))
    with kernels_from(None):
        convolve(features, kernel, links).sum().backward()
    # Forward, and the gradient of the features, which has 32 inputs.
    expected = [inputs] * (taken) + [32] * (rows >= 5000)
    assert [shape[1] for shape in packed] == expected


@pytest.mark.parametrize("bounds", ["image", "data"])
@pytest.mark.parametrize("name", MASKS)
def test_strided(name: str, bounds: Bounds, dtype: torch.dtype) -> None:
    mask = MASKS[name]
    down = build_plan(sites_of(mask), grid_of(mask), 2, bounds=bounds).levels[0].down
    assert down is not None
    coarse = oracle.strided_mask(mask, bounds)
    compare(down, mask, coarse, lambda x, kernel: oracle.strided(x, mask, kernel, bounds), dtype)


@pytest.mark.parametrize("bounds", ["image", "data"])
@pytest.mark.parametrize("name", MASKS)
def test_transposed(name: str, bounds: Bounds, dtype: torch.dtype) -> None:
    mask = MASKS[name]
    down = build_plan(sites_of(mask), grid_of(mask), 2, bounds=bounds).levels[0].down
    assert down is not None
    coarse = oracle.strided_mask(mask, bounds)
    compare(
        down.reversed(), coarse, mask,
        lambda y, kernel: oracle.transposed(y, coarse, kernel, mask), dtype,
    )  # fmt: skip


def test_many_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparserefine_ros.sparse.convolve._CHUNK_ELEMENTS", 70)
    for name in ("odd", "batch"):
        test_submanifold(name, torch.float64)
        test_strided(name, "image", torch.float64)
        test_transposed(name, "data", torch.float64)


def test_gradcheck() -> None:
    mask = MASKS["one-row"]
    links = build_plan(sites_of(mask), grid_of(mask), 1).levels[0].same
    assert torch.autograd.gradcheck(
        lambda x, k: convolve(x, k, links), random_tensors(links.inputs)
    )


def test_only_the_wanted_gradient_is_computed() -> None:
    mask = MASKS["odd"]
    links = build_plan(sites_of(mask), grid_of(mask), 1).levels[0].same
    features, kernel = random_tensors(links.inputs)
    convolve(features.detach(), kernel, links).sum().backward()
    assert kernel.grad is not None
    assert features.grad is None


def test_taps_are_numbered_row_fastest() -> None:
    # Two sites, the second one row below and one column right of the first.
    mask = torch.zeros(1, 1, 4, 5, dtype=torch.bool)
    mask[0, 0, 1, 1] = mask[0, 0, 2, 2] = True
    links = build_plan(sites_of(mask), grid_of(mask), 1).levels[0].same
    kernel = torch.arange(1.0, 10.0).view(9, 1, 1)
    features = torch.tensor([[100.0], [1.0]])
    # k = (drow + 1) + 3 * (dcol + 1): itself 4, lower right 8, upper left 0; weights are k + 1.
    assert convolve(features, kernel, links).tolist() == [[509.0], [105.0]]


def test_taps_of_the_strided_convolution_are_numbered_row_fastest() -> None:
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    down = build_plan(sites_of(mask), grid_of(mask), 2).levels[0].down
    assert down is not None
    digits = torch.tensor([10.0**site for site in range(9)], dtype=torch.float64).view(9, 1)
    kernel = torch.arange(1.0, 10.0, dtype=torch.float64).view(9, 1, 1)
    # Site 3 * row + column meets tap row + 3 * column; the last site is the first digit.
    assert convolve(digits, kernel, down).item() == 963852741.0
    spread = convolve(torch.ones(1, 1, dtype=torch.float64), kernel, down.reversed())
    assert spread.view(3, 3).tolist() == [[1.0, 4.0, 7.0], [2.0, 5.0, 8.0], [3.0, 6.0, 9.0]]


def test_single_precision_and_bfloat16_autocast() -> None:
    mask = MASKS["odd"]
    down = build_plan(sites_of(mask), grid_of(mask), 2).levels[0].down
    assert down is not None
    features, kernel = (part.detach().float() for part in random_tensors(down.outputs))
    plain = convolve(features, kernel, down.reversed())
    assert plain.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        mixed = convolve(features, kernel, down.reversed())
    # bfloat16 keeps eight bits: 27 products of about one each.
    torch.testing.assert_close(mixed.float(), plain, rtol=0.05, atol=0.1)
