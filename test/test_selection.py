# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparserefine_ros.selection import (
    block_sides,
    expand_map,
    nearest_index,
    select_above,
    selection_from_mask,
)
from sparserefine_ros.uncertainty import measure_uncertainty

pytestmark = pytest.mark.usefixtures("engine")

SIZES = [
    ((8, 12), (16, 24)),
    ((8, 12), (8, 12)),
    ((9, 13), (75, 101)),
    ((36, 52), (75, 101)),
    ((7, 5), (8, 6)),
    ((5, 5), (7, 13)),
    ((1, 1), (9, 4)),
    ((3, 4), (1, 1)),
    ((8, 8), (5, 3)),
    ((12, 3), (7, 30)),
    ((1, 6), (1, 17)),
]
SIZE_IDS = [f"{low[0]}x{low[1]}-{full[0]}x{full[1]}" for low, full in SIZES]
Size = tuple[int, int]


def random_logits(low: Size, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (4, *low)).astype(np.float32))


def full_resolution_entropy(logits: torch.Tensor, full: Size) -> NDArray[np.float64]:
    """The paper's: upsample the logits by nearest neighbour, then entropy at every pixel."""
    low = logits.shape[1:]
    upsampled = np.empty((logits.shape[0], *full))
    for y in range(full[0]):
        for x in range(full[1]):
            upsampled[:, y, x] = logits[:, y * low[0] // full[0], x * low[1] // full[1]].numpy()
    exponentials = np.exp(upsampled - upsampled.max(0))
    probabilities = exponentials / exponentials.sum(0)
    entropy: NDArray[np.float64] = -(probabilities * np.log(np.maximum(probabilities, 1e-5))).sum(0)
    return entropy


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8, 1.2])
@pytest.mark.parametrize(("low", "full"), SIZES, ids=SIZE_IDS)
def test_equals_the_definition_at_full_resolution(low: Size, full: Size, threshold: float) -> None:
    logits = random_logits(low)
    entropy = full_resolution_entropy(logits, full)
    # Within float32 rounding of the threshold either answer would be right; the data avoids that.
    assert np.abs(entropy - threshold).min() > 1e-5
    expected = entropy > threshold
    selection = select_above(measure_uncertainty(logits).entropy, full, threshold=threshold)
    mask = np.zeros(full[0] * full[1], bool)
    mask[selection.pixels.numpy()] = True
    assert np.array_equal(mask.reshape(full), expected)
    assert selection.pixels.dtype == torch.int64
    assert selection.pixels.tolist() == sorted(set(selection.pixels.tolist()))
    assert (selection.count, selection.candidates) == (expected.sum(), expected.sum())
    assert selection.full_size == full
    assert selection.share == pytest.approx(expected.mean())
    assert not selection.budget_hit


def test_the_example_thresholds_select_some_and_leave_some() -> None:
    entropy = measure_uncertainty(random_logits((36, 52))).entropy
    shares = [(entropy > threshold).float().mean().item() for threshold in (0.3, 0.8, 1.2)]
    assert 0.9 > shares[0] > shares[1] > shares[2] > 0.001


@pytest.mark.parametrize(("low", "full"), SIZES, ids=SIZE_IDS)
def test_low_res_pixels_name_the_block(low: Size, full: Size) -> None:
    mask = torch.from_numpy(np.random.default_rng(3).random(low) < 0.5)
    selection = selection_from_mask(mask, full)
    expected = [
        (y * full[1] + x, (y * low[0] // full[0]) * low[1] + x * low[1] // full[1])
        for y in range(full[0])
        for x in range(full[1])
        if mask[y * low[0] // full[0], x * low[1] // full[1]]
    ]
    found = zip(selection.pixels.tolist(), selection.low_res_pixels.tolist(), strict=True)
    assert list(found) == expected
    assert torch.equal(selection.low_res_mask, mask)


@pytest.mark.parametrize(("low", "full"), SIZES, ids=SIZE_IDS)
def test_expansion_and_areas_agree_with_floor(low: Size, full: Size) -> None:
    values = np.arange(low[0] * low[1]).reshape(low)
    expanded = expand_map(np.broadcast_to(values, (2, *low)), full)
    blocks = [
        [(y * low[0] // full[0]) * low[1] + x * low[1] // full[1] for x in range(full[1])]
        for y in range(full[0])
    ]
    assert expanded.tolist() == [blocks, blocks]
    counts = np.bincount(np.ravel(blocks), minlength=low[0] * low[1]).reshape(low)
    assert np.array_equal(np.multiply.outer(*block_sides(low, full)), counts)


def test_nearest_index_does_not_lose_precision() -> None:
    index = nearest_index(16384, 16383).tolist()
    assert index == [y * 16383 // 16384 for y in range(16384)]


@pytest.mark.parametrize(("low", "full"), SIZES, ids=SIZE_IDS)
def test_the_budget_keeps_the_highest_blocks(low: Size, full: Size) -> None:
    entropy = measure_uncertainty(random_logits(low)).entropy
    areas = np.bincount(
        [
            (y * low[0] // full[0]) * low[1] + x * low[1] // full[1]
            for y in range(full[0])
            for x in range(full[1])
        ],
        minlength=low[0] * low[1],
    )
    values = entropy.flatten().tolist()
    above = [block for block, value in enumerate(values) if value > 0.3]
    candidates = int(areas[above].sum())
    for budget in {1, 3, candidates // 3, candidates - 1, candidates, candidates + 1} - {0, -1}:
        selection = select_above(entropy, full, threshold=0.3, max_pixels=budget)
        kept: list[int] = []
        for block in sorted(above, key=lambda block: (-values[block], block)):
            if candidates > budget and areas[kept].sum() + areas[block] > budget:
                break
            kept.append(block)
        expected = sorted(block for block in kept if areas[block])
        assert sorted(set(selection.low_res_pixels.tolist())) == expected
        assert selection.count == areas[kept].sum()
        assert selection.count <= budget
        assert selection.candidates == candidates
        assert selection.budget_hit == (candidates > budget)


def test_equal_entropies_are_kept_from_the_upper_left() -> None:
    entropy = torch.full((5, 4), 0.5)
    entropy[3, 3] = 0.9
    selection = select_above(entropy, (10, 8), threshold=0.1, max_pixels=27)
    kept = selection.low_res_mask.nonzero().tolist()
    # Blocks of four pixels: the highest one, then five of the equal ones; a seventh would make 28.
    assert kept == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [3, 3]]
    assert selection.count == 24
    again = select_above(entropy.clone(), (10, 8), threshold=0.1, max_pixels=27)
    assert torch.equal(again.pixels, selection.pixels)


def test_a_budget_below_one_block_selects_nothing() -> None:
    selection = select_above(torch.ones(3, 3), (9, 9), threshold=0.5, max_pixels=8)
    assert (selection.count, selection.candidates, selection.budget_hit) == (0, 81, True)
    assert not selection.low_res_mask.any()


def test_nothing_above_the_threshold() -> None:
    # Exactly the threshold is not above it.
    selection = select_above(torch.full((3, 4), 0.5), (7, 9), threshold=0.5, max_pixels=5)
    assert (selection.count, selection.candidates, selection.budget_hit) == (0, 0, False)
    assert selection.pixels.shape == selection.low_res_pixels.shape == (0,)
    assert selection.share == 0.0


def test_everything_above_the_threshold() -> None:
    selection = select_above(torch.full((3, 4), 0.5), (7, 9), threshold=0.1)
    assert selection.pixels.tolist() == list(range(63))
    assert (selection.share, selection.budget_hit) == (1.0, False)


def test_the_entropy_map_is_left_alone() -> None:
    entropy = measure_uncertainty(random_logits((6, 6))).entropy
    before = entropy.clone()
    select_above(entropy, (12, 12), threshold=0.2, max_pixels=10)
    assert torch.equal(entropy, before)
