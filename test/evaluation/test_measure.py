# SPDX-License-Identifier: Apache-2.0
"""Repeated timing and peak memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparserefine_ros.evaluation import measure
from sparserefine_ros.evaluation.measure import Spread


def test_spread_is_median_and_percentiles() -> None:
    spread = Spread.of(list(np.arange(101.0)))
    assert (spread.median, spread.low, spread.high) == (50.0, 10.0, 90.0)


@pytest.mark.parametrize(("seconds", "runs"), [(20.0, 20), (0.0, 3)], ids=["short", "long"])
def test_long_calls_run_less_often(
    seconds: float, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_SECONDS", seconds)
    calls: list[int] = []
    _, counted = measure.time_calls(lambda: calls.append(1))
    assert (counted, len(calls)) == (runs, runs + 1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux's /proc only")
def test_peak_memory_may_be_forgotten() -> None:
    block = np.ones(40_000_000, np.uint8)
    assert measure.peak_memory_mb() >= measure.resident_mb() - 1.0
    del block
    measure.forget_peak_memory()
    before = measure.peak_memory_mb()
    block = np.ones(80_000_000, np.uint8)
    assert measure.peak_memory_mb() - before > 60.0
    assert block[-1] == 1
