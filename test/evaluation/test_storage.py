# SPDX-License-Identifier: Apache-2.0
"""What is written can be read back, joined, and opened by other programs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from sparserefine_ros.errors import ConfigurationError, SparseRefineError
from sparserefine_ros.evaluation.evaluation import Evaluation
from sparserefine_ros.evaluation.scores import Variant
from sparserefine_ros.evaluation.storage import read_json, scores_to_json, write_csv, write_json


def test_json_gives_the_evaluation_back(whole: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "scores.json"
    write_json(whole, path)
    found = read_json(path)
    assert scores_to_json(found) == scores_to_json(whole)
    assert (found.setting, found.frames, found.parameters) == (
        whole.setting, whole.frames, whole.parameters,
    )  # fmt: skip
    assert (found.data, found.machines, found.notes) == (whole.data, whole.machines, whole.notes)
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]


def test_written_parts_join_to_the_whole(
    whole: Evaluation, parts: list[Evaluation], tmp_path: Path
) -> None:
    for index, part in enumerate(parts):
        write_json(part, tmp_path / f"{index}.json")
    merged = Evaluation.merged([read_json(tmp_path / f"{index}.json") for index in (0, 1)])
    for variant in Variant:
        found, expected = merged.tally.variants[variant], whole.tally.variants[variant]
        for name in ("confusion", "boundary", "objects", "calibration"):
            assert np.array_equal(getattr(found, name).counts, getattr(expected, name).counts)
        assert not np.array_equal(found.confusion.counts, found.boundary.counts)


def test_json_holds_scores_by_name(whole: Evaluation, tmp_path: Path) -> None:
    write_json(whole, tmp_path / "scores.json")
    content = json.loads((tmp_path / "scores.json").read_text())
    refined = whole.tally.variants[Variant.REFINED]
    assert content["variants"]["refined"]["miou"] == refined.confusion.mean_iou()
    assert content["variants"]["refined"]["boundary_miou"] == refined.boundary.mean_iou()
    assert set(content["variants"]["refined"]["iou"]) == {"road", "car", "sky"}
    assert content["selector_recall"] == whole.tally.selection.recall
    # No piece of the random labels is a small object.
    assert content["variants"]["refined"]["small_object_recall"] is None


def test_csv_has_a_row_for_each_class_and_variant(whole: Evaluation, tmp_path: Path) -> None:
    write_csv(whole, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["variant"], row["class"]) for row in rows] == [
        (variant.value, name)
        for variant in whole.setting.variants
        for name in ("road", "car", "sky", "(all)")
    ]
    (refined,) = (row for row in rows if (row["variant"], row["class"]) == ("refined", "(all)"))
    totals = whole.totals(Variant.REFINED)
    assert float(refined["iou"]) == pytest.approx(totals.mean_iou, abs=1e-6)
    assert float(refined["accuracy"]) == pytest.approx(totals.pixel_accuracy, abs=1e-6)
    assert float(refined["macs"]) == totals.macs
    assert refined["small_object_recall"] == ""
    assert rows[0]["macs"] == ""


class TestMistakes:
    def spoil(self, evaluation: Evaluation, path: Path, *keys: str | int, value: object) -> None:
        write_json(evaluation, path)
        content = json.loads(path.read_text())
        inner = content["raw"]
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        path.write_text(json.dumps(content))

    @pytest.mark.parametrize(
        ("keys", "value", "text"),
        [
            (("selection",), [[1, 2, 3]], r"SelectionScore counts \[2, 3\], got \[1, 3\]"),
            (("selection", 0, 0), -4, r"raw\.json: selection\.0\.0: .*, got -4"),
            (("curve", 3), [1], "raw.json: .*evaluate again"),
            (("selection", 0, 0), 10**20, r"selection\.0\.0: .*less than"),
            (("frames", 0, "refined_share"), 1.5, r"refined_share: .*equal to 1"),
            (("frames", 0, "stage_ms", "dense"), float("nan"), r"stage_ms\.dense: "),
            (("frames",), [], r"frames: .*at least 1"),
            (("frames", 0, "stage_ms"), {"dense": 1.0}, r"expected times of .*, got \['dense'\]"),
            (("variants",), {}, r"expected counts of \['dense-low', .*, got \[\]"),
            (("format",), 2, r"raw\.json: format: .*, got 2"),
            (("setting", "frames"), "many", "setting.frames: .*, got 'many'"),
        ],
    )
    def test_spoilt_counts_are_named(
        self, whole: Evaluation, tmp_path: Path, keys: tuple[str, ...], value: object, text: str
    ) -> None:
        path = tmp_path / "raw.json"
        self.spoil(whole, path, *keys, value=value)
        with pytest.raises(ConfigurationError, match=text):
            read_json(path)

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (None, "expected a readable file .*: No such file"),
            ("{", "is not JSON"),
            ('{"miou": 1}', "expected the scores of an evaluation with their counts under 'raw'"),
            ("[1]", "expected the scores of an evaluation"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path: Path, content: str | None, text: str) -> None:
        path = tmp_path / "other.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigurationError, match=text):
            read_json(path)

    def test_place_that_cannot_be_written(self, whole: Evaluation, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(SparseRefineError, match=r"cannot write .*; make room or grant access"):
            write_json(whole, tmp_path / "file" / "scores.json")
