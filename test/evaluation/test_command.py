# SPDX-License-Identifier: Apache-2.0
"""`sparserefine evaluate` from the command line to the files it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_tiny_bundle

from sparserefine_ros.bundle_spec import ClassSpec
from sparserefine_ros.cli import main
from sparserefine_ros.data.street import CLASS_NAMES

DATA = "street:3:4:160x120"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the classes of street scenes."""
    classes = tuple(
        ClassSpec(name=name, colour=(20 * i, 255 - 20 * i, 0)) for i, name in enumerate(CLASS_NAMES)
    )
    folder = tmp_path_factory.mktemp("bundles") / "street"
    return make_tiny_bundle(folder, sharpness=4.0, classes=classes)


def run(*arguments: object) -> int:
    threads = () if "--merge" in arguments else ("--threads", "1")
    return main(["evaluate", *threads, *map(str, arguments)])


def scores(path: Path) -> dict[str, object]:
    """Everything but times."""
    content = json.loads(path.read_text())
    for part in (content, *content["variants"].values()):
        del part["latency_ms"]
    del content["raw"]
    return content


def test_parts_merged_equal_one_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--bundle", folder, "--data", DATA, "--dense-full"]
    assert run(*how, "--json", tmp_path / "whole.json", "--out", tmp_path / "report") == 0
    printed = capsys.readouterr().out
    assert "boundary mean IoU" in printed
    assert f"report written to {tmp_path / 'report' / 'report.html'}" in printed
    assert len(list((tmp_path / "report" / "pictures").iterdir())) == 1 + 4 * 6
    assert scores(tmp_path / "report" / "scores.json") == scores(tmp_path / "whole.json")

    parts = [tmp_path / f"{shard}.json" for shard in (1, 2, 3)]
    for shard, path in enumerate(parts, 1):
        assert run(*how, "--shard", f"{shard}/3", "--json", path) == 0
    merged = tmp_path / "merged"
    assert run("--merge", *parts, "--out", merged) == 0
    assert scores(merged / "scores.json") == scores(tmp_path / "whole.json")
    assert "No pictures were drawn" in (merged / "report.html").read_text()


def test_scores_may_lie_in_the_report(folder: Path, tmp_path: Path) -> None:
    how = ["--bundle", folder, "--data", DATA, "--limit", 1]
    for _ in range(2):
        assert run(*how, "--json", tmp_path / "scores.json", "--out", tmp_path) == 0
        assert (tmp_path / "report.html").exists()


def test_limit_takes_the_first_frames(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    assert run("--bundle", folder, "--data", DATA, "--limit", 2, "--json", path) == 0
    content = json.loads(path.read_text())
    assert [frame["name"] for frame in content["raw"]["frames"]] == ["street_-4", "street_-5"]
    assert set(content["variants"]) == {"dense-low", "refined"}


def test_small_objects_are_scored(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    assert run("--bundle", folder, "--data", "street:3:1:640x480", "--json", path) == 0
    content = json.loads(path.read_text())
    recall = content["variants"]["refined"]["small_object_recall"]
    objects = content["raw"]["variants"]["refined"]["objects"]
    assert sum(row[0] for row in objects) > 0
    assert recall == pytest.approx(sum(row[1] for row in objects) / sum(row[0] for row in objects))


def test_another_bundle_at_full_resolution(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    how = ["--bundle", folder, "--data", DATA, "--limit", 1, "--json", path]
    assert run(*how, "--dense-full", folder) == 0
    variants = json.loads(path.read_text())["variants"]
    # The same dense model at the same size.
    assert variants["dense-full"]["miou"] == variants["dense-low"]["miou"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data", DATA, "--shard", "3/2"], "expected a part I/N with I of 1 .. N"),
        (["--data", DATA, "--limit", "-1"], "expected a limit of 0 (all) or more frames, got -1"),
        (["--data", DATA, "--processes", "0"], "expected 1 process or more, got 0"),
        (["--data", DATA, "--dense-full", "no/such"], "expected a bundle folder"),
        (["--data", DATA, "--out", "/dev/null/report"], "folder that can be written to"),
        (["--data", DATA, "--json", "/dev/null/a.json"], "folder that can be written to"),
        (["--data", DATA, "--pictures", "-1"], "expected 0 or more pictures, got -1"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--bundle", folder, *arguments) == 1
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "expected a readable file no.json"),
        (["--limit", "3"], "--json or --out only, got --limit"),
        (["--dense-full"], "--json or --out only, got --dense-full"),
        (["--bundle", "x"], "--json or --out only, got --bundle"),
    ],
)
def test_mistakes_in_a_merge(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--merge", "no.json", *arguments) == 1
    assert text in capsys.readouterr().err


def test_other_classes_are_refused(
    folder: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--bundle", tiny_bundle, "--data", DATA) == 1
    assert "expected data with the bundle's classes ['road', 'car', 'sky']" in (
        capsys.readouterr().err
    )
    assert run("--bundle", folder, "--data", DATA, "--dense-full", tiny_bundle) == 1
    assert "expected a full-resolution bundle with the bundle's classes" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--data", DATA, "--merge", "a.json"]])
def test_either_data_or_parts(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
