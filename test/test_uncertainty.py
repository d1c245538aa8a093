# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparserefine_ros import uncertainty
from sparserefine_ros.uncertainty import measure_uncertainty

pytestmark = pytest.mark.usefixtures("engine")


def summarise_columns(
    logits: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
    entropy, labels, top = uncertainty.summarise_columns(torch.from_numpy(logits))
    return entropy.numpy(), labels.numpy(), top.numpy()


def naive(logits: NDArray[np.float32]) -> tuple[list[float], list[int], list[float]]:
    """The reference's definition, pixel by pixel in float64: [C, N] -> entropy, label, top p."""
    entropies, labels, tops = [], [], []
    for column in logits.T.astype(np.float64):
        exponentials = [math.exp(value - max(column)) for value in column]
        probabilities = [value / sum(exponentials) for value in exponentials]
        entropies.append(-sum(p * math.log(max(p, 1e-5)) for p in probabilities))
        labels.append(list(column).index(max(column)))
        tops.append(max(probabilities))
    return entropies, labels, tops


def random_logits(classes: int, count: int, spread: float) -> NDArray[np.float32]:
    return (np.random.default_rng(classes).normal(0, spread, (classes, count))).astype(np.float32)


@pytest.mark.parametrize("spread", [0.0, 0.1, 2.0, 20.0, 1e4])
@pytest.mark.parametrize("classes", [2, 3, 19, 255])
def test_equals_the_definition(classes: int, spread: float) -> None:
    logits = random_logits(classes, 60, spread)
    entropy, labels, top = summarise_columns(logits)
    expected = naive(logits)
    assert (entropy.dtype, labels.dtype, top.dtype) == (np.float32, np.uint8, np.float32)
    # Float32 sums of up to 255 terms.
    np.testing.assert_allclose(entropy, expected[0], rtol=1e-5, atol=2e-6)
    assert labels.tolist() == expected[1]
    np.testing.assert_allclose(top, expected[2], rtol=1e-5)


def test_more_columns_than_a_block() -> None:
    logits = random_logits(4, 8192 * 2 + 5, 3.0)
    entropy, labels, top = summarise_columns(logits)
    pieces = [
        summarise_columns(np.ascontiguousarray(part)) for part in np.array_split(logits, 7, 1)
    ]
    for whole, parts in zip((entropy, labels, top), zip(*pieces, strict=True), strict=True):
        np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-6)
    assert np.array_equal(labels, logits.argmax(0))


def test_extremes() -> None:
    logits = np.array([[0, 0, 1e30, -1e30, 88], [0, 100, -1e30, 1e30, -88]], np.float32)
    entropy, labels, top = summarise_columns(logits)
    assert labels.tolist() == [0, 1, 0, 1, 0]
    assert np.isfinite(entropy).all()
    assert entropy[0] == pytest.approx(math.log(2))
    assert entropy[1:].tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    assert (entropy >= 0).all()
    assert top.tolist() == pytest.approx([0.5, 1, 1, 1, 1])


def test_the_clamp_at_1e_5_shows() -> None:
    # p = 1e-6 counts as -1e-6 * log(1e-5), not as -1e-6 * log(1e-6), times many classes.
    logits = np.full((201, 1), math.log(1e-6), np.float32)
    logits[0] = math.log(1 - 200e-6)
    entropy, _, _ = summarise_columns(logits)
    clamped = -200e-6 * math.log(1e-5) - (1 - 200e-6) * math.log(1 - 200e-6)
    unclamped = clamped + 200e-6 * math.log(10)
    assert entropy[0] == pytest.approx(clamped, rel=1e-3)
    assert abs(entropy[0] - clamped) < abs(entropy[0] - unclamped) / 50


def test_ties_go_to_the_lower_class() -> None:
    logits = np.array([[1, 0, 2, 5], [1, 3, 2, 5], [0, 3, 2, 5]], np.float32)
    assert summarise_columns(logits)[1].tolist() == [0, 1, 0, 0]


def test_no_columns() -> None:
    entropy, labels, top = summarise_columns(np.zeros((3, 0), np.float32))
    assert entropy.shape == labels.shape == top.shape == (0,)


@pytest.mark.parametrize("contiguous", [True, False])
def test_maps_keep_rows_and_columns(contiguous: bool) -> None:
    logits = torch.from_numpy(random_logits(5, 6 * 7, 2.0)).view(5, 6, 7)
    before = logits.clone()
    if not contiguous:
        logits = logits.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    result = measure_uncertainty(logits)
    assert torch.equal(logits, before)
    assert result.entropy.shape == result.labels.shape == result.top_probability.shape == (6, 7)
    for row in range(6):
        for column in range(7):
            entropy, label, top = naive(before[:, row, column, None].numpy())
            assert result.entropy[row, column].item() == pytest.approx(entropy[0], abs=2e-6)
            assert result.labels[row, column] == label[0]
            assert result.top_probability[row, column].item() == pytest.approx(top[0], rel=1e-5)
