# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from oracle import example_masks, grid_of, sites_of, strided_mask
from torch import Tensor

from sparserefine_ros.sparse.plan import Bounds, Gather, Links, build_plan

pytestmark = pytest.mark.usefixtures("engine")

MASKS = example_masks()
DEPTH = 4
Triple = tuple[int, int, int]


def links_as_triples(gathers: Iterable[Gather], inputs: int, outputs: int) -> set[Triple]:
    """(input row, output row, tap); fails unless every output row is produced exactly once."""
    produced: list[int] = []
    triples: list[Triple] = []
    for gather in gathers:
        rows = range(outputs) if gather.rows is None else gather.rows.tolist()
        assert gather.table.shape == (len(rows), len(gather.taps))
        assert gather.table.dtype == torch.int32
        produced += rows
        for row, sources in zip(rows, gather.table.tolist(), strict=True):
            for source, tap in zip(sources, gather.taps, strict=True):
                assert 0 <= source <= inputs
                if source < inputs:
                    triples.append((source, row, tap))
    assert sorted(produced) == list(range(outputs))
    assert len(set(triples)) == len(triples)
    return set(triples)


def row_of(mask: Tensor) -> dict[Triple, int]:
    """Row of each active (picture, row, column)."""
    active = mask[:, 0].nonzero().tolist()
    return {(b, r, c): i for i, (b, r, c) in enumerate(active)}


def expected_same(mask: Tensor) -> set[Triple]:
    rows = row_of(mask)
    return {
        (rows[b, r + tap % 3 - 1, c + tap // 3 - 1], out, tap)
        for (b, r, c), out in rows.items()
        for tap in range(9)
        if (b, r + tap % 3 - 1, c + tap // 3 - 1) in rows
    }


def expected_down(mask: Tensor, coarse: Tensor) -> set[Triple]:
    fine_rows, coarse_rows = row_of(mask), row_of(coarse)
    return {
        (fine_rows[b, 2 * r + tap % 3, 2 * c + tap // 3], out, tap)
        for (b, r, c), out in coarse_rows.items()
        for tap in range(9)
        if (b, 2 * r + tap % 3, 2 * c + tap // 3) in fine_rows
    }


def swapped(triples: set[Triple]) -> set[Triple]:
    return {(out, source, tap) for source, out, tap in triples}


def check_links(links: Links, expected: set[Triple]) -> None:
    assert links_as_triples(links.forward, links.inputs, links.outputs) == expected
    assert links_as_triples(links.backward, links.outputs, links.inputs) == swapped(expected)
    assert links.pairs() == len(expected)
    back = links.reversed()
    assert (back.inputs, back.outputs) == (links.outputs, links.inputs)
    assert links_as_triples(back.forward, back.inputs, back.outputs) == swapped(expected)


@pytest.mark.parametrize("bounds", ["image", "data"])
@pytest.mark.parametrize("name", MASKS)
def test_every_level_links_exactly_the_neighbours(name: str, bounds: Bounds) -> None:
    mask = MASKS[name]
    plan = build_plan(sites_of(mask), grid_of(mask), DEPTH, bounds=bounds)
    assert len(plan.levels) == DEPTH
    for depth, level in enumerate(plan.levels):
        assert level.grid == grid_of(mask)
        assert torch.equal(level.sites, sites_of(mask))
        assert level.count == int(mask.sum())
        check_links(level.same, expected_same(mask))
        if depth == DEPTH - 1:
            assert level.down is None
        else:
            coarse = strided_mask(mask, bounds)
            assert level.down is not None
            check_links(level.down, expected_down(mask, coarse))
            mask = coarse


def test_the_examples_are_not_all_trivial() -> None:
    plan = build_plan(sites_of(MASKS["odd"]), grid_of(MASKS["odd"]), 3)
    assert [level.count > 0 for level in plan.levels] == [True, True, True]
    assert plan.levels[0].same.pairs() > plan.levels[0].count


def test_the_active_set_dilates() -> None:
    mask = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    mask[0, 0, 4, 4] = True
    level = build_plan(sites_of(mask), grid_of(mask), 2).levels[1]
    # Input 4 lies in the windows of outputs 1 (taps 2 .. 4) and 2 (taps 4 .. 6) along each axis.
    assert level.grid == (1, 4, 4)
    assert level.sites.tolist() == [5, 6, 9, 10]


def test_data_bounds_follow_the_reference_formula() -> None:
    # o <= (max_coordinate - 2) // 2, the maximum taken over the active sites of all pictures.
    for last in range(12):
        mask = torch.zeros(2, 1, 20, 20, dtype=torch.bool)
        mask[0, 0, 0, 0] = mask[1, 0, last, 2] = True
        level = build_plan(sites_of(mask), grid_of(mask), 2, bounds="data").levels[1]
        assert level.grid == (2, max(0, (last - 2) // 2 + 1), 1)


def test_bounds_differ_where_trailing_rows_are_inactive() -> None:
    mask = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    mask[0, 0, :4, :4] = True
    image, data = (
        build_plan(sites_of(mask), grid_of(mask), 2, bounds=bounds).levels[1].count
        for bounds in ("image", "data")
    )
    assert (image, data) == (4, 1)


@pytest.mark.parametrize("site", [-1, 2 * 5 * 7, 10**12])
def test_sites_outside_the_grid_are_refused(site: int) -> None:
    with pytest.raises(ValueError, match=r"expected sites of 0 \.\. 69"):
        build_plan(torch.tensor([3, site]).sort().values, (2, 5, 7), 2)


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_threads_change_nothing(threads: int) -> None:
    """The rows of each parity stay in order, with more threads than rows as well."""
    given = torch.get_num_threads()
    for mask in MASKS.values():
        sites = sites_of(mask)
        expected = build_plan(sites, grid_of(mask), 2)
        torch.set_num_threads(threads)
        try:
            found = build_plan(sites, grid_of(mask), 2)
        finally:
            torch.set_num_threads(given)
        for level, other in zip(found.levels, expected.levels, strict=True):
            assert torch.equal(level.sites, other.sites)
            links, others = (
                [*each.same.forward, *(each.down.backward if each.down else ())]
                for each in (level, other)
            )
            for gather, same in zip(links, others, strict=True):
                assert torch.equal(gather.table, same.table)
                assert gather.rows is same.rows or torch.equal(gather.rows, same.rows)
