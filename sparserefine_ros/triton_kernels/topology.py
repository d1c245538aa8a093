# SPDX-License-Identifier: Apache-2.0
"""The plan of a frame, built on the GPU from a mask, with one wait for it.

Every level's mask lies in one buffer, row by row, and a second time sorted by parity of row and
column, the order in which transposed convolutions write. One running sum over that buffer numbers
all sites of all levels. Then the host reads the number of sites of each level and parity (and the
bounding boxes, where they bound the levels), which is the only synchronisation, and allocates what
the last kernels fill in.

The result equals `sparse.plan.build_plan`, the definition, tensor by tensor.

Shape legend: B pictures; h, w grid of the mask; H, W grid of a level; N sites of a level; T taps.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparserefine_ros.errors import BackendError
from sparserefine_ros.sparse.index import TAPS
from sparserefine_ros.sparse.plan import Bounds, Gather, Level, Links, SparsePlan
from sparserefine_ros.triton_kernels.runtime import launching_on

_BLOCK: Final = 256

# Cells are numbered in int32: divisions of int64 are slow on a GPU.
_MOST_CELLS: Final = (1 << 31) - _BLOCK
_PARITIES: Final = ((0, 0), (0, 1), (1, 0), (1, 1))
_ALL_TAPS: Final = tuple(range(TAPS))


@dataclass(frozen=True)
class _Section:
    """A level's place in the buffer of marks.

    Attributes:
        height, width: of the grid, at its largest, which images bound.
        cells: first cell of the mask, row by row.
        planes: first cell of the four parity planes, each half the size, rounded up.
        end: first cell behind both.
    """

    height: int
    width: int
    cells: int
    planes: int
    end: int


@dataclass(frozen=True)
class _Layout:
    """Sections of all levels, and, on the device, the last cell of each part of them."""

    batch: int
    sections: tuple[_Section, ...]
    last_cells: Tensor
    image_bounds: Tensor


@functools.lru_cache(maxsize=8)
def _layout(grid: tuple[int, int, int], depth: int, device: torch.device) -> _Layout:
    batch, height, width = grid
    sections: list[_Section] = []
    # Cell 0 is empty, so that each part has a cell before it.
    start, last = 1, [0]
    for _ in range(depth):
        planes = start + batch * height * width
        plane = batch * ((height + 1) // 2) * ((width + 1) // 2)
        sections.append(_Section(height, width, start, planes, planes + 4 * plane))
        last += [planes - 1] + [planes - 1 + (i + 1) * plane for i in range(4)]
        start, height, width = sections[-1].end, max(0, (height - 1) // 2), max(0, (width - 1) // 2)
    bounds = [(section.height, section.width) for section in sections]
    return _Layout(
        batch,
        tuple(sections),
        torch.tensor(last, device=device),
        torch.tensor(bounds, dtype=torch.int32, device=device),
    )


@triton.jit
def _place(cell, height, width):
    """Picture, row and column of a cell."""
    line = cell // width
    return line // height, line % height, cell % width


# Sizes of pictures and levels are not specialised, or a camera of another size would compile anew.
@triton.jit(
    do_not_specialize=["source_height", "source_width", "batch", "height", "width"],
    do_not_specialize_on_alignment=["source", "marks", "planes", "bounds", "source_bounds"],
)
def _mark_kernel(
    source, source_height, source_width, marks, planes, bounds, source_bounds, batch, height, width,
    POOL: tl.constexpr, FIND_BOUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mark a level's sites, from the mask by nearest neighbour or from the level above it."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < batch * height * width
    picture, row, column = _place(cell, height, width)
    if POOL:
        # A strided output is active where any input of its window is.
        rows = (tl.load(source_bounds) - 1) // 2
        columns = (tl.load(source_bounds + 1) - 1) // 2
        within = inside & (row < rows) & (column < columns)
        corner = (picture * source_height + 2 * row) * source_width + 2 * column
        active = tl.zeros((BLOCK,), dtype=tl.int1)
        for step in tl.static_range(9):
            at = corner + (step // 3) * source_width + step % 3
            active |= tl.load(source + at, mask=within, other=0) != 0
    else:
        block_row = row * source_height // height
        block_column = column * source_width // width
        at = (picture * source_height + block_row) * source_width + block_column
        active = tl.load(source + at, mask=inside, other=0) != 0
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    plane = (row % 2) * 2 + column % 2
    sorted_cell = ((plane * batch + picture) * half_height + row // 2) * half_width + column // 2
    tl.store(marks + cell, active.to(tl.uint8), mask=inside)
    tl.store(planes + sorted_cell, active.to(tl.uint8), mask=inside)
    if FIND_BOUNDS:
        rows = tl.max(tl.where(active, row + 1, 0), 0).to(tl.int32)
        columns = tl.max(tl.where(active, column + 1, 0), 0).to(tl.int32)
        tl.atomic_max(bounds, rows, sem="relaxed")
        tl.atomic_max(bounds + 1, columns, sem="relaxed")


@triton.jit(
    do_not_specialize=[
        "first", "other_first", "none", "base", "other_base", "batch", "height", "width",
        "active_height", "active_width", "other_height", "other_width",
    ]
)  # fmt: skip
def _table_kernel(
    marks, scan, sites, table, first, base, batch, height, width, active_height, active_width,
    other_first, other_base, other_height, other_width, none,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows linked to each site of a level: stride 1 in the same level, stride 2 in the finer one.

    With stride 1 the sites are written, too.
    """
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < batch * height * width
    active = tl.load(marks + first + cell, mask=inside, other=0) != 0
    site = (tl.load(scan + first + cell, mask=active, other=0) - 1 - base).to(tl.int64)
    picture, row, column = _place(cell, height, width)
    if STRIDE == 1:
        place = (picture * active_height + row) * active_width + column
        tl.store(sites + site, place, mask=active)
    for tap in tl.static_range(9):
        other_row = row * STRIDE + tap % 3 - (2 - STRIDE)
        other_column = column * STRIDE + tap // 3 - (2 - STRIDE)
        exists = active & (other_row >= 0) & (other_row < other_height)
        exists = exists & (other_column >= 0) & (other_column < other_width)
        at = other_first + (picture * other_height + other_row) * other_width + other_column
        linked = exists & (tl.load(marks + at, mask=exists, other=0) != 0)
        number = tl.load(scan + at, mask=linked, other=0) - 1 - other_base
        tl.store(table + site * 9 + tap, tl.where(linked, number, none), mask=active)


@triton.jit
def _one_of(plane, value0, value1, value2, value3):
    late = tl.where(plane == 2, value2, value3)
    return tl.where(plane == 0, value0, tl.where(plane == 1, value1, late))


@triton.jit(
    do_not_specialize=[
        "first", "planes", "base", "planes_base", "batch", "height", "width",
        "coarse_first", "coarse_base", "coarse_height", "coarse_width", "none",
        "start1", "start2", "start3",
    ]
)  # fmt: skip
def _up_kernel(
    marks, scan, rows, table, first, base, planes, planes_base, batch, height, width,
    coarse_first, coarse_base, coarse_height, coarse_width, none, start1, start2, start3,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows sorted by parity and their links to the coarser level, see `SiteIndex.up_tables`.

    start1 .. start3: number of sites of the parities before each.
    """
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < batch * height * width
    active = tl.load(marks + first + cell, mask=inside, other=0) != 0
    site = (tl.load(scan + first + cell, mask=active, other=0) - 1 - base).to(tl.int64)
    picture, row, column = _place(cell, height, width)
    row_odd, column_odd = row % 2, column % 2
    plane = row_odd * 2 + column_odd
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    sorted_cell = ((plane * batch + picture) * half_height + row // 2) * half_width + column // 2
    order = tl.load(scan + planes + sorted_cell, mask=active, other=0) - 1 - planes_base
    order = order.to(tl.int64)
    tl.store(rows + order, site, mask=active)
    # Tables of the parities follow one another, with 4, 2, 2 and 1 taps.
    second = start1.to(tl.int64) * 4
    third = second + (start2 - start1).to(tl.int64) * 2
    fourth = third + (start3 - start2).to(tl.int64) * 2
    start = _one_of(plane, 0, start1, start2, start3)
    offset = _one_of(plane, 0, second, third, fourth)
    row_taps = 2 - row_odd
    entry = offset + (order - start) * row_taps * (2 - column_odd)
    for step in tl.static_range(4):
        row_step, column_step = step % 2, step // 2
        wanted = active & (row_step <= 1 - row_odd) & (column_step <= 1 - column_odd)
        coarse_row, coarse_column = row // 2 - row_step, column // 2 - column_step
        exists = wanted & (coarse_row >= 0) & (coarse_row < coarse_height)
        exists = exists & (coarse_column >= 0) & (coarse_column < coarse_width)
        at = coarse_first + (picture * coarse_height + coarse_row) * coarse_width + coarse_column
        linked = exists & (tl.load(marks + at, mask=exists, other=0) != 0)
        number = tl.load(scan + at, mask=linked, other=0) - 1 - coarse_base
        slot = entry + row_step + row_taps * column_step
        tl.store(table + slot, tl.where(linked, number, none), mask=wanted)


def plan_from_mask(
    mask: Tensor,
    depth: int,
    *,
    full_size: tuple[int, int] | None = None,
    bounds: Bounds = "image",
) -> SparsePlan:
    """Build the plan of a UNet with `depth` levels on the device of the mask.

    Args:
        mask: bool [B, h, w], the selected pixels or blocks.
        depth: number of levels, at least 1.
        full_size: (H, W) to expand the mask to by nearest neighbour; None where it has that size.
        bounds: see `build_plan`.

    Raises:
        BackendError: not such a mask.
    """
    if mask.dtype != torch.bool or mask.dim() != 3:
        raise BackendError(
            f"expected a mask bool [B, h, w], got {mask.dtype} {list(mask.shape)}; add the axis of "
            "pictures, or compare with a threshold"
        )
    batch, *low_res_size = mask.shape
    height, width = low_res_size if full_size is None else full_size
    layout = _layout((batch, height, width), depth, mask.device)
    if layout.sections[-1].end > _MOST_CELLS:
        raise BackendError(
            f"expected a grid that 32-bit indices can number, got {batch} x {height} x {width}; "
            "take fewer or smaller pictures at a time"
        )
    with launching_on(mask):
        marks, reach = _mark(mask.contiguous(), layout, find_bounds=bounds == "data")
        scan = marks.cumsum(0, dtype=torch.int32)
        found = torch.cat([scan.index_select(0, layout.last_cells), reach.view(-1)])
        # The host waits here, and nowhere else.
        numbers: list[int] = found.tolist()
        return _Filler(layout, marks, scan, numbers).plan()


def _mark(mask: Tensor, layout: _Layout, *, find_bounds: bool) -> tuple[Tensor, Tensor]:
    """Marks of all sections, uint8, and the rows and columns that bound each level below."""
    marks = torch.zeros(layout.sections[-1].end, dtype=torch.uint8, device=mask.device)
    reach = torch.zeros_like(layout.image_bounds) if find_bounds else layout.image_bounds
    source, height, width = mask.view(torch.uint8), mask.shape[1], mask.shape[2]
    for depth, section in enumerate(layout.sections):
        cells = section.planes - section.cells
        if cells:
            _mark_kernel[(triton.cdiv(cells, _BLOCK),)](
                source, height, width, marks[section.cells :], marks[section.planes :],
                reach[depth], reach[max(0, depth - 1)],
                layout.batch, section.height, section.width,
                POOL=depth > 0, FIND_BOUNDS=find_bounds, BLOCK=_BLOCK,
            )  # fmt: skip
        source, height, width = marks[section.cells :], section.height, section.width
    return marks, reach


class _Filler:
    """Allocates the plan and launches what fills it.

    Args:
        layout: of the marks.
        marks: uint8, 1 at the sites.
        scan: int32, their running sum.
        numbers: the running sum at `layout.last_cells`, then rows and columns of each level.
    """

    def __init__(self, layout: _Layout, marks: Tensor, scan: Tensor, numbers: list[int]) -> None:
        self._layout, self._marks, self._scan = layout, marks, scan
        sums = len(layout.last_cells)
        self._sums, reach = numbers[:sums], numbers[sums:]
        sizes = [(layout.sections[0].height, layout.sections[0].width)]
        sizes += [
            (max(0, (rows - 1) // 2), max(0, (columns - 1) // 2))
            for rows, columns in zip(reach[::2], reach[1::2], strict=True)
        ]
        self._sizes = sizes

    def _base(self, depth: int) -> int:
        """Sites numbered before a level's."""
        return self._sums[5 * depth]

    def _count(self, depth: int) -> int:
        return self._sums[5 * depth + 1] - self._sums[5 * depth]

    def _parity_counts(self, depth: int) -> list[int]:
        around = self._sums[5 * depth + 1 : 5 * depth + 6]
        return [after - before for before, after in itertools.pairwise(around)]

    def plan(self) -> SparsePlan:
        """The whole plan."""
        return SparsePlan(tuple(self._level(depth) for depth in range(len(self._layout.sections))))

    def _level(self, depth: int) -> Level:
        count = self._count(depth)
        sites = torch.empty(count, dtype=torch.int64, device=self._marks.device)
        table = self._table(depth, depth, sites)
        same = Links(
            count, count,
            (Gather(None, table, _ALL_TAPS),), (Gather(None, table, _ALL_TAPS[::-1]),),
        )  # fmt: skip
        down = None
        if depth + 1 < len(self._layout.sections):
            strided = Gather(None, self._table(depth + 1, depth, sites), _ALL_TAPS)
            down = Links(count, self._count(depth + 1), (strided,), self._up_gathers(depth))
        return Level((self._layout.batch, *self._sizes[depth]), sites, same, down)

    def _table(self, depth: int, other: int, sites: Tensor) -> Tensor:
        """int32 [N, 9] of the sites at `depth`, linked to those at `other`, itself or finer."""
        own, linked = self._layout.sections[depth], self._layout.sections[other]
        count = self._count(depth)
        table = torch.empty(count, TAPS, dtype=torch.int32, device=self._marks.device)
        if count:
            _table_kernel[(triton.cdiv(own.planes - own.cells, _BLOCK),)](
                self._marks, self._scan, sites, table, own.cells, self._base(depth),
                self._layout.batch, own.height, own.width, *self._sizes[depth],
                linked.cells, self._base(other), linked.height, linked.width, self._count(other),
                STRIDE=1 + depth - other, BLOCK=_BLOCK,
            )  # fmt: skip
        return table

    def _up_gathers(self, depth: int) -> tuple[Gather, ...]:
        own, coarse = self._layout.sections[depth], self._layout.sections[depth + 1]
        counts = self._parity_counts(depth)
        taps = [
            tuple(row + 3 * column for column in _taps(parity[1]) for row in _taps(parity[0]))
            for parity in _PARITIES
        ]
        sizes = [count * len(some) for count, some in zip(counts, taps, strict=True)]
        rows = torch.empty(sum(counts), dtype=torch.int64, device=self._marks.device)
        table = torch.empty(sum(sizes), dtype=torch.int32, device=self._marks.device)
        starts = list(itertools.accumulate(counts))[:3]
        if rows.numel():
            _up_kernel[(triton.cdiv(own.planes - own.cells, _BLOCK),)](
                self._marks, self._scan, rows, table, own.cells, self._base(depth),
                own.planes, self._sums[5 * depth + 1], self._layout.batch, own.height, own.width,
                coarse.cells, self._base(depth + 1), coarse.height, coarse.width,
                self._count(depth + 1), *starts, BLOCK=_BLOCK,
            )  # fmt: skip
        return tuple(
            Gather(part, entries.view(len(part), len(some)), some)
            for part, entries, some in zip(
                rows.split(counts), table.split(sizes), taps, strict=True
            )
        )


def _taps(odd: int) -> tuple[int, ...]:
    """Taps through which a coordinate of that parity reaches the coarser level."""
    return (1,) if odd else (0, 2)
