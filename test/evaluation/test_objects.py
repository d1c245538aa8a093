# SPDX-License-Identifier: Apache-2.0
"""Small objects against a flood fill written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sparserefine_ros.evaluation.objects import ObjectRecall, find_small_objects

CLASSES = 4
Piece = tuple[int, frozenset[tuple[int, int]]]


def naive_pieces(truth: NDArray[np.uint8]) -> list[Piece]:
    """Class and pixels of every 8-connected piece."""
    left = {(y, x) for y, x in np.ndindex(truth.shape) if truth[y, x] != 255}
    pieces = []
    while left:
        start = min(left)
        label, found, front = int(truth[start]), {start}, [start]
        while front:
            y, x = front.pop()
            for neighbour in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if neighbour in left - found and truth[neighbour] == label:
                    found.add(neighbour)
                    front.append(neighbour)
        left -= found
        pieces.append((label, frozenset(found)))
    return pieces


def random_truth(seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([0, 1, 3, 255], np.uint8), size=(9, 11), p=[0.5, 0.2, 0.2, 0.1])
    return coarse.repeat(4, 0).repeat(3, 1)[:35, :31].copy()


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_flood_fill(seed: int) -> None:
    truth, share = random_truth(seed), 0.06
    rng = np.random.default_rng(seed + 50)
    predicted = np.where(rng.random(truth.shape) < 0.5, truth, 2).astype(np.uint8)
    counts = np.zeros((CLASSES, 2), int)
    for label, pixels in naive_pieces(truth):
        if 10 <= len(pixels) < share * truth.size:
            right = sum(predicted[pixel] == label for pixel in pixels)
            counts[label] += (1, right >= len(pixels) / 2)
    score = ObjectRecall(CLASSES)
    score.update(find_small_objects(truth, CLASSES, max_share=share), predicted)
    assert np.array_equal(score.counts, counts)
    assert 0 < counts[:, 1].sum() < counts[:, 0].sum()
    assert score.recall() == pytest.approx(counts[:, 1].sum() / counts[:, 0].sum())
    assert math.isnan(score.by_class()[2])


def test_half_of_the_pixels_is_enough_and_less_is_not() -> None:
    truth = np.zeros((60, 60), np.uint8)
    truth[10:14, 10:14] = 1
    objects = find_small_objects(truth, 2, max_share=0.01)
    assert objects.areas.tolist() == [16]
    for right, found in ((8, 1), (7, 0)):
        predicted = np.zeros_like(truth)
        predicted[truth == 1] = np.arange(16) < right
        score = ObjectRecall(2)
        score.update(objects, predicted)
        assert score.counts.tolist() == [[0, 0], [1, found]]


@pytest.mark.parametrize(("side", "counted"), [((3, 3), False), ((2, 5), True), ((6, 6), False)])
def test_specks_and_large_pieces_are_left_out(side: tuple[int, int], counted: bool) -> None:
    truth = np.zeros((60, 60), np.uint8)
    truth[5 : 5 + side[0], 5 : 5 + side[1]] = 1
    assert find_small_objects(truth, 2, max_share=0.01).areas.size == counted


def test_default_share_is_a_twentieth_of_a_percent() -> None:
    truth = np.zeros((1000, 1000), np.uint8)
    truth[:20, :25] = 1
    truth[100:120, 100:125] = 2
    truth[100, 100] = 0
    assert find_small_objects(truth, 3).classes.tolist() == [2]


def test_pieces_touch_at_corners_and_not_across_classes() -> None:
    truth = np.full((40, 40), 255, np.uint8)
    truth[0:4, 0:4], truth[4:8, 4:8], truth[4:8, 0:4] = 0, 0, 1
    objects = find_small_objects(truth, 2, max_share=0.5)
    assert sorted(zip(objects.classes, objects.areas, strict=True)) == [(0, 32), (1, 16)]


def test_nothing_labelled() -> None:
    truth = np.full((6, 6), 255, np.uint8)
    score = ObjectRecall(2)
    score.update(find_small_objects(truth, 2), np.zeros_like(truth))
    assert not score.counts.any()
    assert math.isnan(score.recall())


@pytest.mark.parametrize("side", [508, 514])
def test_more_pieces_than_16_bits_can_number(side: int) -> None:
    """Pieces of one pixel, as close as they can lie, around the largest number of 16 bits."""
    truth = np.full((side, side), 255, np.uint8)
    truth[::2, ::2] = 1
    truth[-8:, -8:] = 255
    truth[-5:, -5:] = 1
    objects = find_small_objects(truth, CLASSES)
    assert objects.areas.tolist() == [25]
    rows, columns = np.divmod(objects.pixels, side)
    assert (rows >= side - 5).all()
    assert (columns >= side - 5).all()
    assert np.unique(objects.pixels).size == 25
