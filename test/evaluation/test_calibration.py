# SPDX-License-Identifier: Apache-2.0
"""Expected calibration error against the definition written out pixel by pixel."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from sparserefine_ros.evaluation.calibration import Calibration


def random_frame(seed: int, shape: tuple[int, int] = (13, 17)) -> tuple[NDArray[np.uint8], ...]:
    rng = np.random.default_rng(seed)
    truth = rng.choice(np.array([0, 1, 2, 255], np.uint8), size=shape)
    predicted = np.where(rng.random(shape) < 0.6, truth % 3, rng.integers(0, 3, shape))
    # Every multiple of 17 / 255 is a border of two bins.
    borders = 17 * rng.integers(0, 16, shape)
    confidence = np.where(rng.random(shape) < 0.3, borders, rng.integers(0, 256, shape))
    return truth, predicted.astype(np.uint8), confidence.astype(np.uint8)


def naive_error(frames: list[tuple[NDArray[np.uint8], ...]]) -> float:
    bins: list[list[tuple[Fraction, bool]]] = [[] for _ in range(15)]
    for frame in frames:
        for truth, predicted, level in zip(*(a.ravel().tolist() for a in frame), strict=True):
            if truth != 255:
                confidence = Fraction(level, 255)
                index = next(m for m in range(15) if confidence <= Fraction(m + 1, 15))
                bins[index].append((confidence, truth == predicted))
    total = sum(len(members) for members in bins)
    error = Fraction(0)
    for members in filter(None, bins):
        confidence = sum((c for c, _ in members), Fraction(0)) / len(members)
        accuracy = Fraction(sum(right for _, right in members), len(members))
        error += Fraction(len(members), total) * abs(accuracy - confidence)
    return float(error)


def test_equals_the_definition() -> None:
    frames = [random_frame(seed) for seed in range(3)]
    score = Calibration()
    for frame in frames:
        score.update(*frame)
    assert score.expected_error() == pytest.approx(naive_error(frames), rel=1e-12)
    assert score.expected_error() > 0.05
    labelled = sum(int((truth != 255).sum()) for truth, _, _ in frames)
    assert sum(part.pixels for part in score.bins()) == labelled


def test_borders_belong_to_the_lower_bin() -> None:
    score = Calibration()
    levels = np.array([[0, 1, 17, 18, 255]], np.uint8)
    score.update(np.zeros_like(levels), np.zeros_like(levels), levels)
    assert [part.pixels for part in score.bins()] == [3, 1, *[0] * 12, 1]
    assert math.isnan(score.bins()[5].accuracy)


def test_sure_and_right_is_no_error_sure_and_wrong_is_all_error() -> None:
    sure = np.full((4, 5), 255, np.uint8)
    truth = np.zeros((4, 5), np.uint8)
    right, wrong = Calibration(), Calibration()
    right.update(truth, truth, sure)
    wrong.update(truth, truth + 1, sure)
    assert (right.expected_error(), wrong.expected_error()) == (0.0, 1.0)


@pytest.mark.filterwarnings("error")
def test_nothing_labelled() -> None:
    score = Calibration()
    empty = np.full((3, 3), 255, np.uint8)
    score.update(empty, empty, empty)
    assert math.isnan(score.expected_error())
    assert not score.counts.any()
