# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sparserefine_ros.evaluation.metrics import ConfusionMatrix

Labels = NDArray[np.uint8]
CLASSES = 5


def random_pair(seed: int, *, absent: int | None = None) -> tuple[Labels, Labels]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, (13, 17)).astype(np.uint8)
    predicted = np.where(
        rng.random(truth.shape) < 0.6, truth, rng.integers(0, CLASSES, truth.shape)
    )
    truth[rng.random(truth.shape) < 0.1] = 255
    if absent is not None:
        truth[truth == absent] = 255
    return truth, predicted.astype(np.uint8)


def naive_iou(pairs: list[tuple[Labels, Labels]]) -> list[float]:
    """Per class over all frames, NaN where no pixel is truly of it."""
    result = []
    for label in range(CLASSES):
        both = either = true = 0
        for truth, predicted in pairs:
            for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
                if t == 255:
                    continue
                both += t == label and p == label
                either += label in (t, p)
                true += t == label
        result.append(both / either if true else math.nan)
    return result


@pytest.mark.parametrize("absent", [None, 0, 3, CLASSES - 1])
def test_equals_the_naive_count(absent: int | None) -> None:
    pairs = [random_pair(seed, absent=absent) for seed in range(3)]
    matrix = ConfusionMatrix(CLASSES)
    for truth, predicted in pairs:
        matrix.update(truth, predicted)
    expected = naive_iou(pairs)
    np.testing.assert_allclose(matrix.iou(), expected, rtol=1e-12)
    assert math.isnan(matrix.iou()[absent]) if absent is not None else not np.isnan(expected).any()
    present = [value for value in expected if not math.isnan(value)]
    assert matrix.mean_iou() == pytest.approx(sum(present) / len(present), rel=1e-12)
    hits = sum(int((t == p).sum()) for t, p in pairs)
    labelled = sum(int((t != 255).sum()) for t, _ in pairs)
    assert matrix.pixel_accuracy() == pytest.approx(hits / labelled, rel=1e-12)
    assert matrix.counts.sum() == labelled
    for label, accuracy in enumerate(matrix.class_accuracy()):
        true = sum(int((t == label).sum()) for t, _ in pairs)
        right = sum(int(((t == label) & (p == label)).sum()) for t, p in pairs)
        expected_accuracy = right / true if true else math.nan
        assert accuracy == pytest.approx(expected_accuracy, nan_ok=True)


def test_rows_are_the_truth() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[1, 1, 2, 255]], np.uint8), np.array([[0, 1, 0, 0]], np.uint8))
    assert matrix.counts.tolist() == [[0, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert matrix.counts.dtype == np.int64


def test_a_class_present_but_never_found_counts_as_zero() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8))
    assert matrix.iou()[:2].tolist() == [0.5, 0.0]
    assert math.isnan(matrix.iou()[2])
    assert matrix.mean_iou() == 0.25


def test_perfect() -> None:
    truth, _ = random_pair(1)
    matrix = ConfusionMatrix(CLASSES)
    matrix.update(truth, np.where(truth == 255, 0, truth).astype(np.uint8))
    assert (matrix.mean_iou(), matrix.pixel_accuracy()) == (1.0, 1.0)


@pytest.mark.filterwarnings("error")
def test_nothing_labelled() -> None:
    matrix = ConfusionMatrix(CLASSES)
    matrix.update(np.full((3, 3), 255, np.uint8), np.zeros((3, 3), np.uint8))
    assert matrix.counts.sum() == 0
    assert math.isnan(matrix.mean_iou())
    assert math.isnan(matrix.pixel_accuracy())
