# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from sparserefine_ros.maps import assemble_maps, confidence_bytes
from sparserefine_ros.records import ALL_MAPS, Map, Uncertainty
from sparserefine_ros.selection import selection_from_mask

Size = tuple[int, int]
SIZES = [((4, 6), (8, 12)), ((4, 6), (9, 13)), ((3, 3), (3, 3)), ((5, 4), (2, 3)), ((4, 4), (1, 1))]
FIELDS = {item: item.value for item in Map}


def random_summary(shape: tuple[int, ...], seed: int) -> Uncertainty:
    rng = np.random.default_rng(seed)
    return Uncertainty(
        entropy=torch.from_numpy(rng.random(shape).astype(np.float32)),
        labels=torch.from_numpy(rng.integers(0, 11, shape).astype(np.uint8)),
        top_probability=torch.from_numpy(rng.random(shape).astype(np.float32)),
    )


@pytest.mark.parametrize("fuses", [True, False])
@pytest.mark.parametrize(("low", "full"), SIZES)
def test_dense_everywhere_and_fused_where_selected(low: Size, full: Size, fuses: bool) -> None:
    mask = torch.from_numpy(np.random.default_rng(1).random(low) < 0.5)
    selection = selection_from_mask(mask, full)
    dense = random_summary(low, 2)
    fused = random_summary((selection.count,), 3) if fuses else None
    maps = assemble_maps(dense, selection, fused, ALL_MAPS)
    assert maps.labels is not None
    assert maps.entropy is not None
    assert maps.confidence is not None
    assert maps.refined is not None
    assert maps.dense_labels is not None
    selected = iter(range(selection.count))
    for y in range(full[0]):
        for x in range(full[1]):
            at = (y * low[0] // full[0], x * low[1] // full[1])
            part, where = dense, at
            if mask[at] and fused is not None:
                part, where = fused, (next(selected),)
            assert maps.labels[y, x] == part.labels[where]
            assert maps.entropy[y, x] == part.entropy[where].item()
            assert maps.confidence[y, x] == round(255 * part.top_probability[where].item())
            assert maps.refined[y, x] == mask[at]
            assert maps.dense_labels[y, x] == dense.labels[at]


def test_types_and_memory() -> None:
    selection = selection_from_mask(torch.ones(3, 3, dtype=torch.bool), (3, 3))
    dense = random_summary((3, 3), 2)
    before = dense.labels.clone(), dense.entropy.clone()
    maps = assemble_maps(dense, selection, random_summary((9,), 3), ALL_MAPS)
    types = {
        Map.LABELS: np.uint8,
        Map.ENTROPY: np.float32,
        Map.CONFIDENCE: np.uint8,
        Map.REFINED: np.bool_,
        Map.DENSE_LABELS: np.uint8,
    }
    for item, dtype in types.items():
        array = getattr(maps, FIELDS[item])
        assert array.dtype == dtype
        assert array.flags.c_contiguous
    # At equal sizes too the maps are copies: the dense summary is not written through.
    assert torch.equal(dense.labels, before[0])
    assert torch.equal(dense.entropy, before[1])


@pytest.mark.parametrize("wanted", [frozenset(), *(frozenset({item}) for item in Map)])
def test_only_what_was_asked_for(wanted: frozenset[Map]) -> None:
    selection = selection_from_mask(torch.ones(3, 3, dtype=torch.bool), (6, 6))
    args = (random_summary((3, 3), 2), selection, random_summary((36,), 3))
    maps, everything = assemble_maps(*args, wanted), assemble_maps(*args, ALL_MAPS)
    for item, name in FIELDS.items():
        if item in wanted:
            assert np.array_equal(getattr(maps, name), getattr(everything, name))
        else:
            assert getattr(maps, name) is None


def test_confidence_is_rounded_not_cut() -> None:
    probabilities = [0.0, 0.4 / 255, 0.6 / 255, 0.5, 254.4 / 255, 254.6 / 255, 1.0, 1.0000001]
    part = Uncertainty(
        entropy=torch.zeros(8),
        labels=torch.zeros(8, dtype=torch.uint8),
        top_probability=torch.tensor(probabilities),
    )
    assert confidence_bytes(part).tolist() == [0, 0, 1, 128, 254, 255, 255, 255]
