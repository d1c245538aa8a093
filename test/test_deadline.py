# SPDX-License-Identifier: Apache-2.0
"""The learnt cost of a pixel keeps simulated frames within their deadline."""

from __future__ import annotations

import numpy as np
import pytest

from sparserefine_ros.deadline import PixelCost


def simulate(
    *, fixed_ms: float, per_pixel_ms: float, wanted: list[int], left_ms: float, noise: float
) -> tuple[list[float], list[int]]:
    """Times and pixels of frames on a machine of that cost."""
    generator = np.random.default_rng(0)
    cost, times, refined = PixelCost(), [], []
    for pixels in wanted:
        count = min(pixels, cost.affordable(left_ms))
        took = (fixed_ms + per_pixel_ms * count) * generator.uniform(1.0, 1.0 + noise)
        cost.learn(count, took)
        times.append(took)
        refined.append(count)
    return times, refined


@pytest.mark.parametrize("fixed_ms", [0.0, 1.5, 12.0])
@pytest.mark.parametrize("per_pixel_ms", [2e-5, 3e-4])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_jumping_load_stays_within_the_deadline(
    fixed_ms: float, per_pixel_ms: float, noise: float
) -> None:
    full = 2048 * 1024
    wanted = [int(full * (0.02 if index % 7 < 3 else 0.6)) for index in range(300)]
    times, refined = simulate(
        fixed_ms=fixed_ms, per_pixel_ms=per_pixel_ms, wanted=wanted, left_ms=50.0, noise=noise
    )
    late = np.mean(np.array(times[20:]) > 55.0)
    assert late <= 0.01
    # And the time is used: large frames get most of what the deadline has room for.
    room = min(max(wanted), (50.0 - fixed_ms) / per_pixel_ms)
    assert np.median([count for count in refined[20:] if count > 0.03 * full] or refined[20:]) > (
        0.7 / (1.0 + noise) * min(room, max(wanted))
    )


def test_constant_load_settles() -> None:
    times, refined = simulate(
        fixed_ms=2.0, per_pixel_ms=1e-4, wanted=[1_000_000] * 60, left_ms=30.0, noise=0.05
    )
    assert max(times[20:]) <= 33.0
    assert min(refined[20:]) > 200_000


def test_a_slower_machine_is_noticed() -> None:
    cost = PixelCost()
    for _ in range(100):
        cost.learn(100_000, 10.0)
    before = cost.affordable(10.0)
    for _ in range(5):
        cost.learn(100_000, 20.0)
    assert cost.affordable(10.0) < 0.6 * before


def test_nothing_is_affordable_without_time() -> None:
    cost = PixelCost()
    assert cost.affordable(0.0) == cost.affordable(-5.0) == 0
    assert cost.affordable(1.0) > 0
    cost.learn(10_000, 1.0)
    assert cost.affordable(-5.0) == 0


def test_growth_is_bounded() -> None:
    cost = PixelCost()
    cost.learn(100_000, 1e-3)
    assert cost.affordable(1e9) == 200_000


def test_frames_without_pixels_teach_the_fixed_cost() -> None:
    cost = PixelCost()
    assert cost.nanoseconds_per_pixel == 0.0
    for _ in range(50):
        cost.learn(0, 3.0)
        cost.learn(50_000, 8.0)
    assert cost.nanoseconds_per_pixel == pytest.approx(100.0, rel=0.05)
    assert cost.affordable(8.0) == pytest.approx(50_000, rel=0.05)
