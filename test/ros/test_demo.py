# SPDX-License-Identifier: Apache-2.0
"""The whole way: camera process, node process, viewer; the same labels as without ROS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from conftest import make_tiny_bundle, smooth_picture

from sparserefine_ros.bundle import Bundle, seal_bundle
from sparserefine_ros.pipeline import PipelineOptions
from sparserefine_ros.ros.demo import live_line
from sparserefine_ros.run import run_source


def test_labels_through_ros_equal_labels_without(tiny_bundle: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(3):
        bgr = cv2.cvtColor(smooth_picture(48, 70, seed=index), cv2.COLOR_RGB2BGR)
        assert cv2.imwrite(str(pictures / f"view_{index}.png"), bgr)
    run_source(Bundle.open(tiny_bundle), PipelineOptions(), str(pictures), tmp_path / "plain")
    command = [sys.executable, "-m", "sparserefine_ros.cli", "demo", str(pictures)]
    command += ["--bundle", str(tiny_bundle), "--out", str(tmp_path / "ros"), "--rate", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "processed" in done.stdout
    through_ros = sorted((tmp_path / "ros").glob("*_labels.png"))
    plain = sorted((tmp_path / "plain").glob("*_labels.png"))
    assert len(through_ros) == len(plain) == 3
    for one, other in zip(through_ros, plain, strict=True):
        np.testing.assert_array_equal(cv2.imread(str(one), -1), cv2.imread(str(other), -1))
    assert (tmp_path / "ros" / "contact_sheet.jpg").stat().st_size > 1000


def test_a_missing_source_ends_the_demo_with_its_name(tiny_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparserefine_ros.cli", "demo", "no/such/folder"]
    command += ["--bundle", str(tiny_bundle), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "no/such/folder" in done.stderr


def test_a_node_that_cannot_start_ends_the_demo_with_its_reason(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle")
    (bundle / "dense.onnx").write_bytes(b"no model")
    seal_bundle(bundle)
    command = [sys.executable, "-m", "sparserefine_ros.cli", "demo", "--bundle", str(bundle)]
    command += ["--out", str(tmp_path / "out"), "--frames", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "cannot start" in done.stderr  # nor does it wait for a state that cannot come
    assert "dense.onnx" in done.stderr


def test_live_line_shows_rate_share_stages_and_drops() -> None:
    values = {
        "fps": "4.98",
        "refined_share.last": "0.125",
        "latency_ms.dense.median": "7.10",
        "latency_ms.total.median": "41.30",
        "latency_ms.total.last": "40.00",
        "received": "12",
        "processed": "9",
        "dropped": "2",
        "rejected": "1",
    }
    line = live_line(values)
    for text in ("4.98 fps", "12.5%", "41 ms (dense 7)", "received 12", "dropped 2", "rejected 1"):
        assert text in line
