# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from sparserefine_ros.training.losses import dice_loss


def naive_dice_loss(logits: list[list[float]], labels: list[int]) -> float:
    """Class by class and pixel by pixel, from logits [C][N]."""
    losses = []
    for label in sorted(set(labels) - {255}):
        overlap = squares = truths = 0.0
        for pixel, truth in enumerate(labels):
            if truth == 255:
                continue
            total = sum(math.exp(row[pixel]) for row in logits)
            p = math.exp(logits[label][pixel]) / total
            overlap += p * (truth == label)
            squares += p * p
            truths += truth == label
        losses.append(1.0 - 2.0 * overlap / (squares + truths))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize(
    "labels",
    [[0, 1, 2, 0, 1, 4, 4], [0, 255, 1, 255, 0, 255, 4], [3] * 7, [255] * 7],
    ids=["one-absent", "ignored", "one-class", "unlabelled"],
)
def test_equals_the_definition(labels: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (3.0 * torch.randn(5, 7, generator=generator, dtype=torch.float64)).requires_grad_()
    loss = dice_loss(logits, torch.tensor(labels))
    assert loss.item() == pytest.approx(naive_dice_loss(logits.tolist(), labels), abs=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, torch.tensor(labels) == 255].any()


def test_from_right_to_wrong() -> None:
    labels = torch.tensor([0, 1, 1, 2])
    right = 50.0 * torch.nn.functional.one_hot(labels, 3).t().float()
    assert dice_loss(right, labels).item() == pytest.approx(0.0, abs=1e-6)
    assert dice_loss(right.roll(1, 0), labels).item() == pytest.approx(1.0, abs=1e-6)


def test_nothing_selected() -> None:
    logits = torch.zeros(3, 0, requires_grad=True)
    loss = dice_loss(logits, torch.zeros(0, dtype=torch.int64))
    assert loss.item() == 0.0
    loss.backward()
