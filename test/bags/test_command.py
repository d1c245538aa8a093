# SPDX-License-Identifier: Apache-2.0
"""`sparserefine bag` from the command line, and the executable `evaluate_bag`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from bags.conftest import tiny_bag

from sparserefine_ros.bags import library
from sparserefine_ros.bags.frames import BagFrames
from sparserefine_ros.bags.reader import Bag
from sparserefine_ros.cli import main
from sparserefine_ros.cli.bag import evaluate_bag
from sparserefine_ros.errors import BackendError

pytest.importorskip("rosbags", reason="rosbags is not installed")


def run(*arguments: object) -> int:
    return main(["bag", *map(str, arguments)])


def test_write_then_evaluate(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag, out = tmp_path / "street", tmp_path / "out"
    assert run("write", "street:2:48x32", "--limit", 2, "--out", bag, "--rate", 5) == 0
    assert "2 pictures written to" in capsys.readouterr().out
    how = ["--bundle", tiny_bundle, "--threads", 1, "--no-maps"]
    assert run("evaluate", bag, "--out", out, *how) == 0
    printed = capsys.readouterr().out
    assert "street: 2 of 2 pictures, refined " in printed
    assert f"report written to {out / 'report.html'}" in printed


def test_evaluate_several_and_merge(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bags = [tiny_bag(tmp_path / name, 1) for name in ("a", "b")]
    out = tmp_path / "out"
    how = ["--bundle", tiny_bundle, "--threads", 1, "--no-maps", "--pictures", 0]
    assert run("evaluate", *bags, "--label-topic", "/truth", "--out", out, *how) == 0
    assert "mean IoU refined" in capsys.readouterr().out
    merged = tmp_path / "merged"
    assert run("merge", out / "a", out / "b", "--out", merged) == 0
    assert "2 frames" in capsys.readouterr().out
    assert (merged / "summary.json").read_bytes() == (out / "summary.json").read_bytes()


def test_bags_whose_names_hold_dots_have_results_of_their_own(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    how = ["--image-topic", "/image", "--bundle", tiny_bundle, "--threads", 1, "--no-maps"]
    for name in ("run.1", "run.2"):
        (storage,) = tiny_bag(tmp_path / name, 1).glob("*.mcap")
        assert run("evaluate", tmp_path / name, *how) == 0
    assert run("evaluate", storage, *how) == 0
    found = {path.name for path in tmp_path.glob("*_results")}
    assert found == {"run.1_results", "run.2_results", f"{storage.stem}_results"}


def test_labels_of_some_pictures_are_said(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag, truth = tiny_bag(tmp_path / "bag", 2), tmp_path / "truth"
    how = ["--image-topic", "/image", "--bundle", tiny_bundle, "--threads", 1, "--no-maps"]
    how += ["--out", tmp_path / "out"]
    truth.mkdir()
    with Bag(bag) as opened:
        frames = list(BagFrames(opened, "/image"))
    labels = np.zeros(frames[0].image.shape[:2], np.uint8)
    assert cv2.imwrite(str(truth / f"{frames[1].header.text}.png"), labels)
    assert run("evaluate", bag, "--labels", truth, *how) == 0
    assert "labels for 1 of them" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "only 1 of 2 pictures have labels" in page


def test_the_executable(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bag, out = tiny_bag(tmp_path / "bag", 1), tmp_path / "bag_results"
    monkeypatch.chdir(tmp_path)
    words = ["evaluate_bag", str(bag), "--image-topic", "/image"]
    words += ["--bundle", str(tiny_bundle), "--threads", "1", "--no-maps"]
    monkeypatch.setattr(sys, "argv", words)
    assert evaluate_bag() == 0
    assert json.loads((out / "metrics.json").read_text())["frames"] == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["write", "--out", "x"], "expected either a source or --data"),
        (["write", "a", "--data", "street", "--out", "x"], "expected either a source or --data"),
        (["write", "street", "--labels", "--out", "x"], "expected labels to come from a data set"),
        (["evaluate", "no/such", "--out", "x"], "there is no file or folder no/such"),
        (["evaluate", "no", "--shard", "3/2", "--out", "x"], "expected a part I/N"),
        (["evaluate", "no", "--pictures", "-1", "--out", "x"], "expected 0 or more pictures"),
        (["merge", "no", "--out", "x"], "expected the results of a bag in no"),
        (["replay", "no/such"], "there is no file or folder no/such"),
        (["replay", "no", "--rate", "-1"], "expected a rate of 0 or more, got -1"),
        (["replay", "no", "--loop"], "expected an end for a bag that is looped"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if arguments[0] == "replay":
        pytest.importorskip("rclpy", reason="rclpy is not installed")
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 1
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_names_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rosbags.rosbag2", None)
    with pytest.raises(BackendError, match=r"pip install 'rosbags>=0.11.9'"):
        library.rosbags_module("rosbags.rosbag2")
