# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution and its gradients on Triton's kernels, for training on a CUDA GPU.

The gradient of the features is a convolution along the backward gathers. That of the weights is,
for each tap, a product of the linked input rows with the output rows; the rows are shared out among
programs whose sums are added in a fixed order, so that a step repeats exactly.

The CPU twin is `kernels.autograd`, the definition `sparse.convolve` in PyTorch.

Shape legend: N input rows; M rows of a gather; T taps; K = 9 kernel taps; I input channels; O
output channels. A missing link is row N.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparserefine_ros.sparse.convolve import pick_taps
from sparserefine_ros.sparse.plan import Gather
from sparserefine_ros.triton_kernels.convolution import LANES, Weights, convolve, pitch
from sparserefine_ros.triton_kernels.precision import multiply_add
from sparserefine_ros.triton_kernels.runtime import (
    INTERPRETED,
    launching_on,
    multiprocessors,
    power_of_two,
)
from sparserefine_ros.triton_kernels.tuning import TunedKernel, suits_precision

# A program reads at least so many rows, or starting it costs more than it does.
_LEAST_ROWS: Final = 1024
_USUAL_TILE: Final = 64
_PROGRAMS_PER_PROCESSOR: Final = 4


def convolve_gathers(
    features: Tensor, kernel: Tensor, gathers: tuple[Gather, ...], outputs: int
) -> Tensor:
    """The convolution along gathers that cover every output row.

    Args:
        features: [N, I] in float16, bfloat16 or float32.
        kernel: [K, I, O] of the same type.
        gathers: of the links, on the device of the features.
        outputs: number of output rows.

    Returns:
        [outputs, O] of the same type.
    """
    if features.stride(1) != 1:
        features = features.contiguous()
    out = features.new_empty(outputs, kernel.shape[2])
    for gather in gathers:
        weights = Weights.of(pick_taps(kernel, gather.taps), features.dtype)
        convolve(
            features, gather.table.contiguous(), weights, gather.table.shape[0],
            raw=out, rows=gather.rows,
        )  # fmt: skip
    return out


def _configurations() -> list[triton.Config]:
    """Tiles (rows, inputs, outputs) to choose from by measurement; the interpreter takes one."""
    if INTERPRETED:
        return [triton.Config({"BLOCK_M": 64, "BLOCK_I": 16, "BLOCK_O": 16})]
    tiles = (
        (64, 16, 16, 4, 3), (64, 32, 32, 4, 3), (64, 32, 64, 4, 3), (64, 64, 64, 4, 3),
        (32, 64, 64, 4, 4), (64, 128, 64, 8, 3), (32, 128, 128, 8, 3),
    )  # fmt: skip
    return [
        triton.Config({"BLOCK_M": m, "BLOCK_I": i, "BLOCK_O": o}, num_warps=warps, num_stages=depth)
        for m, i, o, warps, depth in tiles
    ]


def _prune(
    configurations: list[triton.Config], named: Mapping[str, Any], **given: int
) -> list[triton.Config]:
    """Tiles no wider than the kernel; the narrowest is always among them."""
    widths = {
        "BLOCK_I": power_of_two(given["CHANNELS"], least=LANES),
        "BLOCK_O": power_of_two(given["OUTPUTS"], least=LANES),
    }
    return [
        configuration
        for configuration in configurations
        if all(configuration.kwargs[side] <= width for side, width in widths.items())
        and suits_precision(configuration, named["x"].dtype)
    ]


# As in `convolution`, alignment changes from frame to frame.
@triton.jit(
    do_not_specialize=["count", "inputs", "share", "size_class"],
    do_not_specialize_on_alignment=["table", "rows"],
)
def _weight_gradient_kernel(
    x, x_pitch, table, gradients, gradient_pitch, rows, partial, count, inputs, share, size_class,
    TAPS: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = (OUTPUTS + BLOCK_O - 1) // BLOCK_O
    tile, tap, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i = (tile // COLUMNS) * BLOCK_I + tl.arange(0, BLOCK_I)
    o = (tile % COLUMNS) * BLOCK_O + tl.arange(0, BLOCK_O)
    in_channels, in_outputs = i < CHANNELS, o < OUTPUTS
    first = part.to(tl.int64) * share
    acc = tl.zeros((BLOCK_I, BLOCK_O), dtype=tl.float32)
    for step in range(0, share, BLOCK_M):
        within = step + tl.arange(0, BLOCK_M)
        m = first + within
        in_count = (within < share) & (m < count)
        row = tl.load(table + m * TAPS + tap, mask=in_count, other=0).to(tl.int64)
        linked = in_count & (row < inputs)
        gathered = tl.load(
            x + row[:, None] * x_pitch + i[None, :],
            mask=linked[:, None] & in_channels[None, :],
            other=0.0,
        )
        target = m if rows is None else tl.load(rows + m, mask=in_count, other=0).to(tl.int64)
        gradient = tl.load(
            gradients + target[:, None] * gradient_pitch + o[None, :],
            mask=in_count[:, None] & in_outputs[None, :],
            other=0.0,
        )
        acc = multiply_add(tl.trans(gathered), gradient, acc)
    place = ((part * TAPS + tap).to(tl.int64) * CHANNELS + i)[:, None] * OUTPUTS + o[None, :]
    tl.store(partial + place, acc, mask=in_channels[:, None] & in_outputs[None, :])


_tuned_kernel: Final = TunedKernel(
    _weight_gradient_kernel,
    _configurations(),
    key=["size_class", "TAPS", "CHANNELS", "OUTPUTS"],
    prune=_prune,
)


def weight_gradient(features: Tensor, gradients: Tensor, gather: Gather) -> Tensor:
    """Gradient of the weights of a gather's taps.

    Args:
        features: [N, I] in float16, bfloat16 or float32.
        gradients: [outputs, O] of the convolution's result, of the same type.
        gather: M output rows, on the same device.

    Returns:
        float32 [T, I, O].
    """
    count, taps = gather.table.shape
    channels, outputs = features.shape[1], gradients.shape[1]
    if count == 0:
        return features.new_zeros(taps, channels, outputs, dtype=torch.float32)
    features, gradients = (
        rows if rows.stride(1) == 1 else rows.contiguous() for rows in (features, gradients)
    )
    parts, share = _shares(count, taps, channels, outputs, features.device)
    partial = features.new_empty(parts, taps, channels, outputs, dtype=torch.float32)

    def tiles(chosen: Mapping[str, int]) -> tuple[int, int, int]:
        down = triton.cdiv(channels, chosen["BLOCK_I"])
        return down * triton.cdiv(outputs, chosen["BLOCK_O"]), taps, parts

    with launching_on(features):
        _tuned_kernel.launch(
            tiles, features, pitch(features), gather.table.contiguous(),
            gradients, pitch(gradients), gather.rows, partial,
            count, features.shape[0], share, share.bit_length(),
            TAPS=taps, CHANNELS=channels, OUTPUTS=outputs,
        )  # fmt: skip
    return partial.sum(0)


def _shares(
    count: int, taps: int, channels: int, outputs: int, device: torch.device
) -> tuple[int, int]:
    """Number of programs that share the rows of one tile and tap, and the rows of each."""
    if device.type != "cuda":
        return 2, -(-count // 2)
    tiles = -(-channels // _USUAL_TILE) * -(-outputs // _USUAL_TILE) * taps
    wanted = max(1, _PROGRAMS_PER_PROCESSOR * multiprocessors(device) // tiles)
    share = max(_LEAST_ROWS, power_of_two(-(-count // wanted)))
    return -(-count // share), share
