# SPDX-License-Identifier: Apache-2.0
"""What the refiner sees of the selected pixels, on the compiled kernels.

Shape legend: H, W full resolution; h, w low resolution; N selected pixels in B blocks; K channels.
Rows are float32 or bfloat16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparserefine_ros.image import Normaliser
from sparserefine_ros.kernels.library import Kernels, address, integer


class _Map(ctypes.Structure):
    _fields_ = [
        ("values", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("channels", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("column", ctypes.c_int64),
    ]


class _Colours(ctypes.Structure):
    _fields_ = [
        ("image", ctypes.c_void_p),
        ("pixels", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("channels", ctypes.c_int64 * 3),
        ("columns", ctypes.c_void_p),
        ("times", ctypes.c_int64),
    ]


@dataclass(frozen=True)
class SampledMap:
    """Some columns of the rows.

    Attributes:
        values: float32 [K, places].
        places: int64 [B], where each block reads.
        column: the first of K.
    """

    values: Tensor
    places: Tensor
    column: int


@dataclass(frozen=True)
class SampledColours:
    """Three columns of the rows, as often as they are wanted.

    Attributes:
        normaliser: makes values of bytes.
        image: uint8 [H, W, 3] RGB, C-contiguous.
        pixels: int64 [N], flat index row * W + column.
        columns: the first of three, each time.
    """

    normaliser: Normaliser
    image: NDArray[np.uint8]
    pixels: Tensor
    columns: Sequence[int]


def find_blocks(kernels: Kernels, mask: Tensor, pixel_cells: Tensor) -> tuple[Tensor, Tensor]:
    """The active cells and which of them each pixel's is.

    Args:
        kernels: as `compiled_kernels` returns.
        mask: bool [h, w].
        pixel_cells: int64 [N], flat indices of active cells.

    Returns:
        int64 [B], flat indices, and int32 [N], 0 .. B - 1.
    """
    mask, pixel_cells = mask.contiguous(), pixel_cells.contiguous()
    blocks = torch.empty(mask.numel() + 1, dtype=torch.int64)
    block_of = torch.empty(pixel_cells.numel(), dtype=torch.int32)
    found = kernels.call.sr_find_blocks(
        address(mask), integer(mask.numel()), address(pixel_cells), integer(pixel_cells.numel()),
        address(blocks), address(block_of), _threads(),
    )  # fmt: skip
    return blocks[:found], block_of


def sample_rows(
    kernels: Kernels, maps: Sequence[SampledMap], blocks: int, width: int, dtype: torch.dtype
) -> Tensor:
    """A row for each block, [B, width], with zeros where no map is."""
    for x in maps:
        assert (x.values.dtype, x.values.device.type) == (torch.float32, "cpu")
        assert x.column + x.values.shape[0] <= width
        assert x.places.numel() == blocks
    rows = torch.empty(blocks, width, dtype=dtype)
    kept = [(x.values.contiguous(), x.places.contiguous(), x.column) for x in maps]
    listed = (_Map * len(kept))(
        *(_Map(v.data_ptr(), p.data_ptr(), *v.shape, column) for v, p, column in kept)
    )
    kernels.call.sr_sample_rows(
        listed, integer(len(kept)), integer(blocks), integer(width), _is_bfloat16(rows),
        address(rows), _threads(),
    )  # fmt: skip
    return rows


def repeat_rows(
    kernels: Kernels, rows: Tensor, block_of: Tensor, colours: SampledColours | None, out: Tensor
) -> None:
    """Write to each row of `out` [N, width] its block's row, and its colours."""
    assert rows.is_contiguous()
    assert out.is_contiguous()
    assert (rows.shape[1], rows.dtype) == (out.shape[1], out.dtype)
    assert out.shape[0] == block_of.numel()
    wanted = _Colours()
    if colours is not None:
        assert colours.image.flags.c_contiguous
        assert colours.image.dtype == np.uint8
        assert colours.image.shape[2:] == (3,)
        assert all(column + 3 <= out.shape[1] for column in colours.columns)
        columns = torch.tensor(colours.columns, dtype=torch.int64)
        wanted = _Colours(
            colours.image.ctypes.data, colours.pixels.data_ptr(),
            colours.normaliser.table.data_ptr(), colours.normaliser.channels,
            columns.data_ptr(), len(columns),
        )  # fmt: skip
    kernels.call.sr_repeat_rows(
        address(rows), integer(rows.shape[1]), _is_bfloat16(rows), address(block_of),
        integer(block_of.numel()), ctypes.byref(wanted), address(out), _threads(),
    )  # fmt: skip


def _is_bfloat16(rows: Tensor) -> ctypes.c_int64:
    return integer(rows.dtype == torch.bfloat16)


def _threads() -> ctypes.c_int64:
    return integer(torch.get_num_threads())
