# SPDX-License-Identifier: Apache-2.0
"""The band along class edges against a search around every pixel."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sparserefine_ros.evaluation.boundary import near_edges
from sparserefine_ros.evaluation.metrics import ConfusionMatrix


def naive_band(truth: NDArray[np.uint8], distance: int) -> NDArray[np.bool_]:
    band = np.zeros(truth.shape, bool)
    height, width = truth.shape
    for y in range(height):
        for x in range(width):
            for other_y in range(max(0, y - distance), min(height, y + distance + 1)):
                for other_x in range(max(0, x - distance), min(width, x + distance + 1)):
                    pair = {int(truth[y, x]), int(truth[other_y, other_x])}
                    band[y, x] |= len(pair) == 2 and 255 not in pair
    return band


def blobs(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Blocks of classes 0, 3, 18 and of unlabelled pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([0, 3, 18, 255], np.uint8), size=(height // 5 + 1, width // 5 + 1))
    return coarse.repeat(5, 0).repeat(5, 1)[:height, :width].copy()


@pytest.mark.parametrize("distance", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [(23, 31), (5, 40), (1, 9), (1, 1)])
def test_equals_the_search(size: tuple[int, int], distance: int) -> None:
    for seed in range(4):
        truth = blobs(*size, seed)
        found = near_edges(truth, distance_px=distance)
        assert found.dtype == np.bool_
        assert np.array_equal(found, naive_band(truth, distance))


def test_band_is_as_wide_as_the_distance_on_each_side() -> None:
    truth = np.repeat(np.array([[0, 1]], np.uint8), 10, axis=1).repeat(6, 0)
    assert near_edges(truth, distance_px=3)[2].nonzero()[0].tolist() == [7, 8, 9, 10, 11, 12]
    assert np.array_equal(near_edges(truth), near_edges(truth, distance_px=3))


def test_unlabelled_pixels_neither_count_nor_make_edges() -> None:
    truth = np.full((9, 9), 4, np.uint8)
    truth[:, 4:] = 255
    assert not near_edges(truth).any()
    truth[:, 6] = 7
    band = near_edges(truth, distance_px=3)
    assert band[0].nonzero()[0].tolist() == [3, 6]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (4, 4)])
def test_no_edges(shape: tuple[int, int]) -> None:
    truth = np.full(shape, 2, np.uint8)
    assert near_edges(truth).shape == shape
    assert not near_edges(truth).any()


def test_iou_of_the_band_ignores_what_lies_inside() -> None:
    truth = np.repeat(np.array([[0, 1]], np.uint8), 20, axis=1).repeat(8, 0)
    wrong_inside, wrong_at_edge = truth.copy(), truth.copy()
    wrong_inside[:, :10] = 1
    wrong_at_edge[:, 19] = 1
    scores = []
    for predicted in (wrong_inside, wrong_at_edge):
        matrix = ConfusionMatrix(2)
        band = near_edges(truth)
        matrix.update(truth[band], predicted[band])
        scores.append(matrix.mean_iou())
    # Of three columns on each side one is wrong: 2 / 3 of one class, 3 / 4 of the other.
    assert scores == [1.0, pytest.approx((2 / 3 + 3 / 4) / 2)]


def test_distance_must_be_positive() -> None:
    with pytest.raises(ValueError, match="1 pixel or more, got 0"):
        near_edges(np.zeros((2, 2), np.uint8), distance_px=0)
