# SPDX-License-Identifier: Apache-2.0
"""The fitted temperature against its definition, and against labels drawn at a known one."""

from __future__ import annotations

import pytest
import torch

from sparserefine_ros.training.temperature import fit_temperature


def draw(count: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels that are right as often as they say divided by the temperature."""
    generator = torch.Generator().manual_seed(2)
    logits = 3.0 * torch.randn(count, 5, generator=generator)
    truth = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, truth


@pytest.mark.parametrize("temperature", [0.5, 0.85, 1.0, 1.7, 3.0])
def test_finds_the_temperature_that_labels_were_drawn_at(temperature: float) -> None:
    found = fit_temperature(*draw(60_000, temperature))
    assert found == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_as_sure_as_right(temperature: float) -> None:
    logits, truth = draw(3_000, temperature)
    sure = (logits / fit_temperature(logits, truth)).softmax(1).amax(1).mean()
    right = (logits.argmax(1) == truth).float().mean()
    assert sure == pytest.approx(float(right), abs=1e-4)


def test_unlabelled_pixels_say_nothing() -> None:
    logits, truth = draw(2_000, 1.5)
    expected = fit_temperature(logits[:1_000], truth[:1_000])
    truth[1_000:] = 255
    assert fit_temperature(logits, truth) == expected
    assert fit_temperature(logits, torch.full_like(truth, 255)) == 1.0


@pytest.mark.parametrize(("right", "expected"), [(True, 0.2), (False, 5.0)])
def test_no_evidence_of_limits(right: bool, expected: float) -> None:
    """Always right, or always wrong: as sure, or as unsure, as it goes."""
    logits, _ = draw(500, 1.0)
    truth = logits.argmax(1) if right else logits.argmin(1)
    assert fit_temperature(logits, truth) == pytest.approx(expected)


def test_logits_that_all_say_the_same() -> None:
    assert 0.2 <= fit_temperature(torch.zeros(7, 3), torch.arange(7) % 3) <= 5.0


def test_huge_logits() -> None:
    logits, truth = draw(2_000, 1.0)
    assert 0.2 <= fit_temperature(1e4 * logits, truth) <= 5.0
