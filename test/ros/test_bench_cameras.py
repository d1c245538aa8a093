# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of the rim and of several cameras, on tiny pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sparserefine_ros.ros.bench_cameras as bench_cameras_module
from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import SparseRefineError
from sparserefine_ros.evaluation.measure import write_figures
from sparserefine_ros.pipeline import PipelineOptions
from sparserefine_ros.ros.bench_cameras import bench_cameras, resident_mb
from sparserefine_ros.ros.bench_rim import SETS, bench_rim
from sparserefine_ros.ros.processes import start_node
from sparserefine_ros.ros.publishers import OUTPUTS


def test_every_frame_of_every_camera_is_accounted_for(tiny_bundle: Path, tmp_path: Path) -> None:
    figures = bench_cameras(
        Bundle.open(tiny_bundle),
        PipelineOptions(threads=1),
        (60, 80),
        cameras=2,
        rate_hz=10.0,
        seconds=3.0,
    )
    assert list(figures.cameras) == ["camera_1", "camera_2"]
    for camera in figures.cameras.values():
        assert camera.sent == 30
        assert camera.unexplained == 0
        assert camera.processed > 0
        assert camera.rejected == 0
        assert camera.processing_ms > 0.0
        assert camera.wait_ms[0] <= camera.over_ms[0]
    assert 0.0 <= figures.unequal < 1.0
    assert min(figures.memory_mb) > 10.0
    table = figures.to_table()
    assert "2 cameras of 80 x 60 at 10 Hz for 3 s" in table
    assert "unexplained     0" in table
    write_figures([figures], tmp_path / "figures.json")
    (read,) = json.loads((tmp_path / "figures.json").read_text())
    assert read["cameras"]["camera_1"]["sent"] == 30


def test_a_sender_that_ends_is_told(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(module: str, **options: Any) -> Any:
        return start_node(module.replace("bench_peer", "no_such_module"), **options)

    monkeypatch.setattr(bench_cameras_module, "start_node", start)
    options = PipelineOptions(threads=1)
    with pytest.raises(SparseRefineError, match="no_such_module ended with exit code 1"):
        bench_cameras(
            Bundle.open(tiny_bundle), options, (60, 80), cameras=1, rate_hz=10.0, seconds=1.0
        )


def test_each_kind_of_message_is_timed() -> None:
    figures = bench_rim((40, 64), messages=3)
    rows = {f"out: {name}" for name in OUTPUTS} | {f"frame: raw in, {name}" for name in SETS}
    assert set(figures.rows) == rows | {"in: raw rgb8", "in: compressed JPEG"}
    for spread in figures.rows.values():
        assert 0.0 < spread.low <= spread.median <= spread.high
    assert "64 x 40, 3 of each" in figures.to_table()


def test_memory_of_a_process() -> None:
    """Of a small one; a large one's changes by itself where the system reclaims memory."""
    program = """
print(flush=True)
input()
block = bytearray(64 << 20)
print(flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        before = resident_mb(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        child.stdout.readline()
        assert 3.0 < before < 40.0
        assert 55.0 < resident_mb(child.pid) - before < 80.0
        child.stdin.write("\n")
