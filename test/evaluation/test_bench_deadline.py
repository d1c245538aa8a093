# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the deadline: its load jumps, and its shares follow from its times."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.cli import main
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation import bench_deadline as module
from sparserefine_ros.evaluation.bench_deadline import LEARNING, bench_deadline
from sparserefine_ros.pipeline import PipelineOptions

OPTIONS = PipelineOptions(threads=1)


def test_with_all_the_time_nothing_is_lost(tmp_path: Path) -> None:
    command = ["bench", "deadline", "--threads", "1"]
    command += ["--size", "64x48", "--frames", "60", "--budget-ms", "1e6"]
    assert main([*command, "--json", str(tmp_path / "figures.json")]) == 0
    (figures,) = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["in_time"], figures["late"]) == (1.0, 0.0)
    assert figures["refined_share"] == pytest.approx(figures["wanted_share"])
    assert 0.02 < figures["wanted_share"] < 0.6
    assert figures["miou"] == figures["miou_unlimited"]


@pytest.fixture
def bundle() -> Bundle:
    return Bundle.named("street_small")


def test_without_time_nothing_is_refined(bundle: Bundle) -> None:
    figures = bench_deadline(bundle, OPTIONS, (48, 64), budget_ms=1e-3, frames=LEARNING + 5)
    assert (figures.in_time, figures.late, figures.refined_share) == (0.0, 1.0, 0.0)
    assert "beyond the deadline: 100.00%" in figures.to_table()


def test_both_shares_occur_in_runs() -> None:
    modes = [mode for _, mode in module._sequence(200)]
    changes = sum(a != b for a, b in itertools.pairwise(modes))
    assert set(modes) == {0, 1}
    assert 200 / 5 <= changes < 199


@pytest.mark.parametrize(("budget_ms", "frames"), [(0.0, 50), (10.0, LEARNING)])
def test_refuses(bundle: Bundle, budget_ms: float, frames: int) -> None:
    with pytest.raises(ConfigurationError, match="a deadline above 0 ms and more than 20 frames"):
        bench_deadline(bundle, OPTIONS, (48, 64), budget_ms=budget_ms, frames=frames)


def test_refuses_other_classes(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected a bundle with the classes of the proc"):
        bench_deadline(Bundle.open(tiny_bundle), OPTIONS, (48, 64), budget_ms=1.0, frames=30)
