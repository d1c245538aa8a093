# SPDX-License-Identifier: Apache-2.0
"""Counts of parts add up to the counts of the whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sparserefine_ros.evaluation.calibration import Calibration
from sparserefine_ros.evaluation.counts import Counts
from sparserefine_ros.evaluation.metrics import ConfusionMatrix
from sparserefine_ros.evaluation.objects import ObjectRecall, find_small_objects
from sparserefine_ros.evaluation.selector import SelectionCurve, SelectionScore


def add_frame(counts: Counts, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (20 + seed, 33)
    coarse = rng.choice(np.array([0, 1, 2, 255], np.uint8), size=(8, 11))
    truth = coarse.repeat(4, 0).repeat(3, 1)[: shape[0]]
    labels = rng.integers(0, 3, shape).astype(np.uint8)
    if isinstance(counts, ConfusionMatrix):
        counts.update(truth, labels)
    elif isinstance(counts, SelectionScore):
        counts.update(truth, labels, rng.random(shape) < 0.3)
    elif isinstance(counts, SelectionCurve):
        counts.update(truth, labels, torch.from_numpy(rng.random((10, 16)).astype(np.float32)))
    elif isinstance(counts, Calibration):
        counts.update(truth, labels, rng.integers(0, 256, shape).astype(np.uint8))
    else:
        assert isinstance(counts, ObjectRecall)
        counts.update(find_small_objects(truth, 3, max_share=0.2), labels)


KINDS = [
    lambda: ConfusionMatrix(3),
    SelectionScore,
    lambda: SelectionCurve(3),
    Calibration,
    lambda: ObjectRecall(3),
]


@pytest.mark.parametrize("make", KINDS)
def test_merged_parts_equal_the_whole(make: Callable[[], Counts]) -> None:
    whole, first, second = make(), make(), make()
    for seed in range(4):
        add_frame(whole, seed)
        add_frame(first if seed % 2 else second, seed)
    assert first.counts.any()
    assert not np.array_equal(first.counts, whole.counts)
    first.merge(second)
    assert np.array_equal(first.counts, whole.counts)
    assert first.counts.dtype == np.int64


def test_other_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ConfusionMatrix counts \[3, 3\], got .* \[4, 4\]"):
        ConfusionMatrix(3).merge(ConfusionMatrix(4))
    with pytest.raises(ValueError, match="got SelectionScore"):
        ConfusionMatrix(3).merge(SelectionScore())  # type: ignore[arg-type]
