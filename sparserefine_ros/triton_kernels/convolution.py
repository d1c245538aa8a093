# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution as an implicit matrix product over a table of linked rows.

A program owns a tile of output rows and channels. It walks over the taps and the input channels,
gathers the linked rows, zero where a link is missing, and multiplies them by the tap's weights.
What the network does next happens while the sums are in registers: bias, ReLU, residual, and up to
two norms with their ReLU, each written to a place of its own. Every place is a range of columns of
some buffer, so a concatenation is two convolutions that write side by side.

Where a level has too few tiles to fill the GPU, the taps are shared out among several programs per
tile; their sums are added in a second launch, in a fixed order, so that results repeat exactly.

The CPU twin is `kernels.convolution`, the definition `sparse.convolve` in PyTorch.

Shape legend: N input rows; M output rows; T taps; I input channels; O output channels. Features are
[rows, channels] in float16, bfloat16 or float32, channels innermost. A missing link is row N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from sparserefine_ros.triton_kernels.precision import multiply_add, rounded
from sparserefine_ros.triton_kernels.runtime import (
    INTERPRETED,
    launching_on,
    multiprocessors,
    power_of_two,
)
from sparserefine_ros.triton_kernels.tuning import TunedKernel, size_class, suits_precision

# Buffers have rows of whole 32-byte sectors in half precision.
LANES: Final = 16

# Tiles below this many for each multiprocessor leave the GPU idle, so taps are shared out.
_TILES_PER_PROCESSOR: Final = 2
_USUAL_TILE: Final = 64
_SPLITS: Final = (3, 9)


@dataclass(frozen=True)
class Activation:
    """max(0, scale * x + shift), both float32 [channels]."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Weights:
    """Weights of some taps.

    Attributes:
        values: [T * I, padded(O)].
        taps: T.
        inputs: I.
        outputs: O.
    """

    values: Tensor
    taps: int
    inputs: int
    outputs: int

    @classmethod
    def of(cls, kernel: Tensor, dtype: torch.dtype) -> Weights:
        """From [T, I, O], rounded to `dtype`."""
        taps, inputs, outputs = kernel.shape
        rows = kernel.detach().reshape(taps * inputs, outputs)
        values = F.pad(rows, (0, padded(outputs) - outputs)).to(dtype).contiguous()
        return cls(values, taps, inputs, outputs)


def padded(channels: int) -> int:
    """Channels rounded up to whole sectors."""
    return -(-channels // LANES) * LANES


def take(like: Tensor, count: int, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised features [count, channels] in rows of `padded(channels)`."""
    buffer = torch.empty(
        count, padded(channels), dtype=like.dtype if dtype is None else dtype, device=like.device
    )
    return buffer[:, :channels]


@triton.jit
def _accumulate(
    acc, x, x_pitch, table, inputs, weights, m, in_count, n, in_outputs, first, last,
    TAPS: tl.constexpr, CHANNELS: tl.constexpr, WEIGHT_PITCH: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Add steps first .. last - 1 of the product; a step is BLOCK_K channels of one tap."""
    CHUNKS: tl.constexpr = (CHANNELS + BLOCK_K - 1) // BLOCK_K
    for step in range(first, last):
        tap = step // CHUNKS
        k = (step % CHUNKS) * BLOCK_K + tl.arange(0, BLOCK_K)
        in_channels = k < CHANNELS
        if table is None:
            row = m
            linked = in_count
        else:
            row = tl.load(table + m * TAPS + tap, mask=in_count, other=0).to(tl.int64)
            linked = in_count & (row < inputs)
        gathered = tl.load(
            x + row[:, None] * x_pitch + k[None, :],
            mask=linked[:, None] & in_channels[None, :],
            other=0.0,
        )
        weight = tl.load(
            weights + (tap * CHANNELS + k)[:, None] * WEIGHT_PITCH + n[None, :],
            mask=in_channels[:, None] & in_outputs[None, :],
            other=0.0,
        )
        acc = multiply_add(gathered, weight, acc)
    return acc


@triton.jit
def _store_active(y, out, pitch, scale, shift, row, n, mask, in_outputs):
    by = tl.load(scale + n, mask=in_outputs, other=0.0)
    offset = tl.load(shift + n, mask=in_outputs, other=0.0)
    # A plain maximum makes 0 of NaN, and what overflowed would not show.
    active = tl.maximum(y * by[None, :] + offset[None, :], 0.0, tl.PropagateNan.ALL)
    tl.store(
        out + row[:, None] * pitch + n[None, :], rounded(active, out.dtype.element_ty), mask=mask
    )


@triton.jit
def _finish(
    y, m, in_count, n, in_outputs, bias, residual, residual_pitch, raw, raw_pitch,
    out1, pitch1, scale1, shift1, out2, pitch2, scale2, shift2, rows, RELU: tl.constexpr,
):  # fmt: skip
    """Everything after the sums, y float32 [BLOCK_M, BLOCK_N]."""
    mask = in_count[:, None] & in_outputs[None, :]
    row = m if rows is None else tl.load(rows + m, mask=in_count, other=0).to(tl.int64)
    if bias is not None:
        y += tl.load(bias + n, mask=in_outputs, other=0.0)[None, :]
    if residual is not None:
        y += tl.load(
            residual + row[:, None] * residual_pitch + n[None, :], mask=mask, other=0.0
        ).to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0, tl.PropagateNan.ALL)
    if raw is not None:
        place = raw + row[:, None] * raw_pitch + n[None, :]
        tl.store(place, rounded(y, raw.dtype.element_ty), mask=mask)
    if out1 is not None:
        _store_active(y, out1, pitch1, scale1, shift1, row, n, mask, in_outputs)
    if out2 is not None:
        _store_active(y, out2, pitch2, scale2, shift2, row, n, mask, in_outputs)


def _configurations() -> list[triton.Config]:
    """Tiles (rows, channels, step) to choose from by measurement; the interpreter takes one."""
    if INTERPRETED:
        return [triton.Config({"BLOCK_M": 64, "BLOCK_N": 16, "BLOCK_K": 16})]
    # Rows are loaded through their numbers: five stages hold three steps, three hold two.
    tiles = (
        (128, 16, 16, 4, 3), (128, 16, 32, 4, 3), (128, 32, 16, 4, 3), (128, 32, 32, 4, 3),
        (128, 32, 32, 4, 5), (64, 32, 32, 4, 5), (128, 64, 32, 4, 3), (128, 64, 32, 4, 5),
        (128, 64, 64, 4, 3), (64, 64, 32, 4, 5), (64, 64, 64, 4, 3), (64, 64, 64, 4, 5),
        (32, 64, 64, 4, 5), (64, 128, 64, 4, 3), (128, 128, 64, 8, 3), (128, 128, 64, 8, 5),
    )  # fmt: skip
    return [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=depth)
        for m, n, k, warps, depth in tiles
    ]


def _prune(
    configurations: Sequence[triton.Config], named: Mapping[str, Any], **given: Any
) -> list[triton.Config]:
    """Tiles as wide as the convolution, or 64 channels and more; some are left for any of them."""
    widest, deepest = (
        power_of_two(given[name], least=least)
        for name, least in (("OUTPUTS", LANES), ("CHANNELS", 2 * LANES))
    )
    return [
        configuration
        for configuration in configurations
        if INTERPRETED
        or (
            min(_USUAL_TILE, widest) <= configuration.kwargs["BLOCK_N"] <= widest
            and configuration.kwargs["BLOCK_K"] <= deepest
            and suits_precision(configuration, named["x"].dtype)
        )
    ]


# Tables and rows of one tap begin wherever those of the taps before end: their alignment changes
# from frame to frame.
@triton.jit(
    do_not_specialize=["count", "inputs", "size_class"],
    do_not_specialize_on_alignment=["table", "rows"],
)
def _convolve_kernel(
    x, x_pitch, table, weights, extra, extra_pitch, extra_weights,
    bias, residual, residual_pitch, raw, raw_pitch,
    out1, pitch1, scale1, shift1, out2, pitch2, scale2, shift2,
    rows, partial, count, inputs, size_class,
    TAPS: tl.constexpr, CHANNELS: tl.constexpr, EXTRA_CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr, WEIGHT_PITCH: tl.constexpr, RELU: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs share rows, which are the larger part of what is read.
    COLUMNS: tl.constexpr = (OUTPUTS + BLOCK_N - 1) // BLOCK_N
    tile, part = tl.program_id(0), tl.program_id(1)
    m = (tile // COLUMNS).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tile % COLUMNS) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_count, in_outputs = m < count, n < OUTPUTS
    STEPS: tl.constexpr = TAPS * ((CHANNELS + BLOCK_K - 1) // BLOCK_K)
    SHARE: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    acc = _accumulate(
        acc, x, x_pitch, table, inputs, weights, m, in_count, n, in_outputs,
        part * SHARE, tl.minimum(part * SHARE + SHARE, STEPS),
        TAPS, CHANNELS, WEIGHT_PITCH, BLOCK_K,
    )  # fmt: skip
    if extra is not None:
        EXTRA_STEPS: tl.constexpr = (EXTRA_CHANNELS + BLOCK_K - 1) // BLOCK_K
        acc = _accumulate(
            acc, extra, extra_pitch, None, inputs, extra_weights, m, in_count, n, in_outputs,
            0, tl.where(part == 0, EXTRA_STEPS, 0),
            1, EXTRA_CHANNELS, WEIGHT_PITCH, BLOCK_K,
        )  # fmt: skip
    if SPLIT == 1:
        _finish(
            acc, m, in_count, n, in_outputs, bias, residual, residual_pitch, raw, raw_pitch,
            out1, pitch1, scale1, shift1, out2, pitch2, scale2, shift2, rows, RELU,
        )  # fmt: skip
    else:
        place = (part.to(tl.int64) * count + m)[:, None] * OUTPUTS + n[None, :]
        tl.store(partial + place, acc, mask=in_count[:, None] & in_outputs[None, :])


_tuned_kernel: Final = TunedKernel(
    _convolve_kernel,
    _configurations(),
    key=["size_class", "TAPS", "CHANNELS", "EXTRA_CHANNELS", "OUTPUTS", "SPLIT"],
    prune=_prune,
)


@triton.jit(do_not_specialize=["count"])
def _finish_kernel(
    partial, bias, residual, residual_pitch, raw, raw_pitch,
    out1, pitch1, scale1, shift1, out2, pitch2, scale2, shift2, rows, count,
    OUTPUTS: tl.constexpr, RELU: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_count, in_outputs = m < count, n < OUTPUTS
    mask = in_count[:, None] & in_outputs[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for part in range(SPLIT):
        place = (m + part * count.to(tl.int64))[:, None] * OUTPUTS + n[None, :]
        acc += tl.load(partial + place, mask=mask, other=0.0)
    _finish(
        acc, m, in_count, n, in_outputs, bias, residual, residual_pitch, raw, raw_pitch,
        out1, pitch1, scale1, shift1, out2, pitch2, scale2, shift2, rows, RELU,
    )  # fmt: skip


def convolve(
    x: Tensor,
    table: Tensor | None,
    weights: Weights,
    count: int,
    *,
    extra: tuple[Tensor, Weights] | None = None,
    raw: Tensor | None = None,
    into: Sequence[tuple[Tensor, Activation]] = (),
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    rows: Tensor | None = None,
    relu: bool = False,
    split: int | None = None,
) -> None:
    """One convolution and what follows it.

    Args:
        x: [N, I].
        table: int32 [M, T], contiguous; None for a product row by row, T = 1 and N = M.
        weights: for x, of the precision of x.
        count: M.
        extra: features [M, K] and their weights [K, O] (T = 1), of the precision of x; their
            product row by row is added to the sums. Not together with `rows`.
        raw: where to write the sums, after bias, residual and `relu`; [rows, O].
        into: where to write what activations make of them, at most two; [rows, O] each.
        bias: float32 [O].
        residual: added to the sums, [rows, O]; must not overlap any output.
        rows: int64 [M], row of each output, none twice; None for all in order.
        relu: see `raw`.
        split: programs that share one tile's taps; None chooses.
    """
    if count == 0:
        return
    outputs = weights.outputs
    split = _choose_split(count, weights, x.device) if split is None else split
    partial = None if split == 1 else x.new_empty(split, count, outputs, dtype=torch.float32)
    features, factors = (None, None) if extra is None else (extra[0], extra[1].values)
    first, second = _targets(into)
    finish = (
        bias, residual, pitch(residual), raw, pitch(raw), *first, *second, rows
    )  # fmt: skip

    def tiles(chosen: Mapping[str, int]) -> tuple[int, int]:
        across = triton.cdiv(outputs, chosen["BLOCK_N"])
        return triton.cdiv(count, chosen["BLOCK_M"]) * across, split

    with launching_on(x):
        _tuned_kernel.launch(
            tiles, x, pitch(x), table, weights.values, features, pitch(features), factors,
            *finish, partial, count, x.shape[0], size_class(count),
            TAPS=weights.taps, CHANNELS=weights.inputs,
            EXTRA_CHANNELS=0 if extra is None else extra[1].inputs,
            OUTPUTS=outputs, WEIGHT_PITCH=weights.values.shape[1], RELU=relu, SPLIT=split,
        )  # fmt: skip
        if partial is not None:
            _finish_kernel[(triton.cdiv(count, 32), triton.cdiv(outputs, 64))](
                partial, *finish, count, OUTPUTS=outputs, RELU=relu, SPLIT=split,
                BLOCK_M=32, BLOCK_N=64,
            )  # fmt: skip


def _targets(into: Sequence[tuple[Tensor, Activation]]) -> list[tuple[Any, ...]]:
    listed: list[tuple[Any, ...]] = [
        (out, pitch(out), activation.scale, activation.shift) for out, activation in into
    ]
    return listed + [(None, 0, None, None)] * (2 - len(listed))


def pitch(features: Tensor | None) -> int:
    """Elements from one row to the next."""
    return 0 if features is None else features.stride(0)


def tuned() -> int:
    """For how many kinds of launches tiles have been chosen in this process."""
    return _tuned_kernel.kinds


def _choose_split(count: int, weights: Weights, device: torch.device) -> int:
    if device.type != "cuda" or weights.taps != max(_SPLITS):
        return 1
    tiles = triton.cdiv(count, _USUAL_TILE) * triton.cdiv(weights.outputs, _USUAL_TILE)
    wanted = _TILES_PER_PROCESSOR * multiprocessors(device)
    if tiles >= wanted:
        return 1
    return next((split for split in _SPLITS if tiles * split >= wanted), max(_SPLITS))
