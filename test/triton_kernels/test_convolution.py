# SPDX-License-Identifier: Apache-2.0
"""Single launches against the dense oracle in float64."""

from __future__ import annotations

import pytest
import torch
from oracle import (
    example_masks,
    grid_of,
    grid_to_rows,
    rows_to_grid,
    sites_of,
    strided,
    strided_mask,
    submanifold,
    transposed,
)
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: pip install triton (Linux, x86-64)")

from sparserefine_ros.sparse.convolve import stacked_taps
from sparserefine_ros.sparse.plan import Gather, Links, build_plan
from sparserefine_ros.triton_kernels.convolution import (
    Activation,
    Weights,
    convolve,
    take,
)

MASKS = example_masks()

# Rms error over the rms of what is right: one rounding of the result, exact inputs.
LARGEST_ERROR = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
DTYPES = pytest.mark.parametrize("dtype", LARGEST_ERROR, ids=lambda dtype: str(dtype)[6:])


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Float64 numbers that `dtype` holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).double()


def poisoned(count: int, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((count, channels), float("nan"), dtype=dtype, device=device)


def run(
    x: Tensor, kernel: Tensor, links: Links, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The links' convolution on the kernels, into NaN, from columns 3 .. of a wider buffer."""
    wide = poisoned(x.shape[0], x.shape[1] + 5, dtype, device)
    wide[:, 3 : 3 + x.shape[1]] = x
    out = poisoned(links.outputs, kernel.shape[2], dtype, device)
    for gather in links.forward:
        gather = gather.to(device)
        stacked = stacked_taps(kernel, gather.taps).view(len(gather.taps), *kernel.shape[1:])
        weights = Weights.of(stacked.to(device), dtype)
        count = gather.table.shape[0]
        convolve(
            wide[:, 3 : 3 + x.shape[1]], gather.table, weights, count, raw=out, rows=gather.rows
        )
    return out.double().cpu()


def check(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == expected.shape
    assert found.isfinite().all()
    if expected.numel():
        error = (found - expected).square().mean().sqrt()
        assert error <= LARGEST_ERROR[dtype] * expected.square().mean().sqrt()


@DTYPES
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("odd-even-dense", (3, 5)), ("batch", (17, 33)), ("one-last", (3, 17)), ("full", (20, 5)),
        ("empty", (3, 5)),
    ],
)  # fmt: skip
def test_stride_1(
    name: str, channels: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    mask = MASKS[name]
    x = randn(int(mask.sum()), channels[0], seed=1, dtype=dtype)
    kernel = randn(9, *channels, seed=2, dtype=dtype)
    links = build_plan(sites_of(mask), grid_of(mask), 1).levels[0].same
    expected = grid_to_rows(submanifold(rows_to_grid(x, mask), mask, kernel), mask)
    check(run(x, kernel, links, dtype, device), expected, dtype)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("odd", torch.float32), ("inner-block", torch.float16), ("inner-block", torch.bfloat16),
        ("corners", torch.float32), ("one-column", torch.float32), ("two-by-two", torch.float32),
    ],
)  # fmt: skip
def test_stride_2_and_back(name: str, dtype: torch.dtype, device: torch.device) -> None:
    mask = MASKS[name]
    for bounds in ("image", "data"):
        plan = build_plan(sites_of(mask), grid_of(mask), 2, bounds=bounds)  # type: ignore[arg-type]
        down = plan.levels[0].down
        assert down is not None
        x = randn(down.inputs, 7, seed=1, dtype=dtype)
        kernel = randn(9, 7, 18, seed=2, dtype=dtype)
        coarse = strided_mask(mask, bounds)
        expected = grid_to_rows(strided(rows_to_grid(x, mask), mask, kernel, bounds), coarse)
        check(run(x, kernel, down, dtype, device), expected, dtype)

        y = randn(down.outputs, 18, seed=3, dtype=dtype)
        back = randn(9, 18, 7, seed=4, dtype=dtype)
        grid = transposed(rows_to_grid(y, coarse), coarse, back, mask)
        found = run(y, back, down.reversed(), dtype, device)
        check(found, grid_to_rows(grid, mask), dtype)


@pytest.mark.parametrize(
    ("split", "dtype"),
    [(1, torch.float32), (4, torch.float32), (9, torch.float16), (1, torch.bfloat16)],
    ids=str,
)
def test_everything_after_the_sums(split: int, dtype: torch.dtype, device: torch.device) -> None:
    """Bias, residual, a second product, ReLU and two norms, written side by side."""
    mask, inputs, outputs = MASKS["batch"], 20, 19
    links = build_plan(sites_of(mask), grid_of(mask), 1).levels[0].same
    (gather,) = links.to(device).forward
    count = links.outputs
    x, more = (randn(count, n, seed=n, dtype=dtype) for n in (inputs, 35))
    kernel, extra = (
        randn(9, inputs, outputs, seed=3, dtype=dtype),
        randn(35, outputs, seed=4, dtype=dtype),
    )
    bias, *affine = (randn(outputs, seed=i) for i in range(5, 10))
    residual = randn(count, outputs, seed=10, dtype=dtype)
    sums = grid_to_rows(submanifold(rows_to_grid(x, mask), mask, kernel), mask)
    expected = (sums + more @ extra + bias + residual).relu()

    def here(values: Tensor, to: torch.dtype = dtype) -> Tensor:
        return values.to(device, to)

    side_by_side = poisoned(count, 2 * outputs + 3, dtype, device)
    first, second = side_by_side[:, :outputs], side_by_side[:, outputs : 2 * outputs]
    raw = take(first, count, outputs)
    norms = [
        Activation(here(scale, torch.float32), here(shift, torch.float32))
        for scale, shift in (affine[:2], affine[2:])
    ]
    convolve(
        here(x), gather.table, Weights.of(here(kernel), dtype), count,
        extra=(here(more), Weights.of(here(extra)[None], dtype)), raw=raw,
        into=[(first, norms[0]), (second, norms[1])], bias=here(bias, torch.float32),
        residual=here(residual), relu=True, split=split,
    )  # fmt: skip
    check(raw.double().cpu(), expected, dtype)
    for found, (scale, shift) in zip((first, second), (affine[:2], affine[2:]), strict=True):
        check(found.double().cpu(), (expected * scale + shift).relu(), dtype)
    assert side_by_side[:, 2 * outputs :].isnan().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("relu", [False, True])
def test_what_is_no_number_does_not_become_zero(relu: bool, device: torch.device) -> None:
    """Sums that overflowed both ways: a ReLU must not hide them."""
    x = torch.tensor([[float("inf")] * 16, [1.0] * 16], device=device)
    kernel = torch.tensor([1.0, -1.0], device=device).repeat(8)[None, :, None].expand(1, 16, 16)
    ones, zeros = torch.ones(16, device=device), torch.zeros(16, device=device)
    raw, active = (torch.zeros(2, 16, device=device) for _ in range(2))
    convolve(
        x, None, Weights.of(kernel.contiguous(), torch.float32), 2,
        raw=raw, into=[(active, Activation(ones, zeros))], relu=relu,
    )  # fmt: skip
    for found in (raw, active):
        assert found[0].isnan().all()
        assert not found[1].any()


@DTYPES
def test_row_by_row(dtype: torch.dtype, device: torch.device) -> None:
    x, weight = randn(70, 21, seed=1, dtype=dtype), randn(21, 4, seed=2, dtype=dtype)
    out = torch.full((70, 4), float("nan"), device=device)
    convolve(x.to(device, dtype), None, Weights.of(weight.to(device)[None], dtype), 70, raw=out)
    check(out.double().cpu(), x @ weight, torch.float32)


def test_rows_without_a_link_get_what_follows_zero(device: torch.device) -> None:
    table = torch.full((5, 9), 3, dtype=torch.int32, device=device)
    x = torch.full((3, 4), float("nan"), device=device)
    weights = Weights.of(torch.ones(9, 4, 2, device=device), torch.float32)
    raw, active = poisoned(5, 2, torch.float32, device), poisoned(5, 2, torch.float32, device)
    shift = torch.tensor([0.5, -1.0], device=device)
    norm = Activation(torch.ones(2, device=device), shift)
    convolve(x, table, weights, 5, raw=raw, into=[(active, norm)])
    assert raw.tolist() == [[0.0, 0.0]] * 5
    assert active.tolist() == [[0.5, 0.0]] * 5


def test_only_the_rows_of_a_gather_are_written(device: torch.device) -> None:
    rows = torch.tensor([4, 0], device=device)
    gather = Gather(rows, torch.tensor([[1], [0]], dtype=torch.int32, device=device), (4,))
    weights = Weights.of(torch.eye(3, device=device)[None], torch.float32)
    x = torch.arange(6.0, device=device).view(2, 3)
    out = torch.full((6, 3), -1.0, device=device)
    convolve(x, gather.table, weights, 2, raw=out, rows=gather.rows)
    assert out[4].tolist() == x[1].tolist()
    assert out[0].tolist() == x[0].tolist()
    assert (out[[1, 2, 3, 5]] == -1.0).all()
