# SPDX-License-Identifier: Apache-2.0
"""Selections against counts done pixel by pixel, and against the pipeline's own selection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparserefine_ros.evaluation.selector import SelectionCurve, SelectionScore
from sparserefine_ros.selection import select_above

CLASSES = 5


def random_pair(
    seed: int, shape: tuple[int, int] = (13, 17)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Truth with ignored pixels, and a dense result that is right at six in ten."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, shape).astype(np.uint8)
    dense = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, CLASSES, shape))
    truth[rng.random(shape) < 0.1] = 255
    return truth, dense.astype(np.uint8)


def test_score_equals_the_naive_count() -> None:
    score = SelectionScore()
    selected_total = wrong_total = found = selected_labelled = pixels = 0
    for seed in range(3):
        truth, dense = random_pair(seed)
        selected = np.random.default_rng(seed + 9).random(truth.shape) < 0.3
        score.update(truth, dense, selected)
        triples = zip(
            truth.ravel().tolist(), dense.ravel().tolist(), selected.ravel().tolist(),
            strict=True,
        )  # fmt: skip
        for t, d, s in triples:
            pixels += 1
            selected_total += s
            selected_labelled += s and t != 255
            wrong_total += t not in (255, d)
            found += s and t not in (255, d)
    assert score.density == pytest.approx(selected_total / pixels)
    assert score.recall == pytest.approx(found / wrong_total)
    assert score.precision == pytest.approx(found / selected_labelled)
    assert 0 < score.precision < 1
    assert 0 < score.recall < 1


def test_nothing_wrong_and_nothing_selected() -> None:
    score = SelectionScore()
    truth = np.zeros((4, 4), np.uint8)
    score.update(truth, truth, np.zeros((4, 4), bool))
    assert (score.density, score.recall, score.precision) == (0.0, 1.0, 1.0)


def test_without_labels_nothing_is_known() -> None:
    score, labels = SelectionScore(), np.zeros((4, 4), np.uint8)
    score.update(np.full_like(labels, 255), labels, np.ones((4, 4), bool))
    assert score.density == 1.0
    assert math.isnan(score.recall)
    assert math.isnan(score.precision)


@pytest.mark.parametrize("low_res", [(7, 9), (13, 17), (1, 1)])
def test_curve_equals_the_pipelines_selection_at_each_threshold(low_res: tuple[int, int]) -> None:
    curve = SelectionCurve(CLASSES)
    assert curve.thresholds[0] == 0.0
    assert curve.thresholds[-1] == pytest.approx(math.log(CLASSES), rel=2**-8)
    assert (np.diff(curve.thresholds) > 0).all()
    expected = [SelectionScore() for _ in curve.thresholds]
    for seed in range(2):
        truth, dense = random_pair(seed)
        rng = np.random.default_rng(seed + 20)
        entropy = (rng.random(low_res) ** 3 * math.log(CLASSES)).astype(np.float32)
        # Some lie exactly on a threshold, which does not exceed it.
        on_threshold = rng.random(low_res) < 0.3
        entropy[on_threshold] = rng.choice(curve.thresholds, int(on_threshold.sum()))
        curve.update(truth, dense, torch.from_numpy(entropy))
        for score, threshold in zip(expected, curve.thresholds.tolist(), strict=True):
            selection = select_above(torch.from_numpy(entropy), truth.shape, threshold=threshold)
            selected = np.zeros(truth.size, bool)
            selected[selection.pixels.numpy()] = True
            score.update(truth, dense, selected.reshape(truth.shape))
    found = curve.scores()
    for score, wanted in zip(found, expected, strict=True):
        assert np.array_equal(score.counts, wanted.counts)
    densities = [score.density for score in found]
    assert densities == sorted(densities, reverse=True)
    assert densities[-1] == 0.0
    assert densities[0] > 0.5
