# SPDX-License-Identifier: Apache-2.0
"""Bags evaluated: the scores of a data set, the same files in every run, and what may go wrong."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bags.conftest import FRAMES, tiny_bag
from bags.recording import IMAGE, STORE, Entry, raw, record
from conftest import smooth_picture
from rosbags.highlevel import AnyReader
from tiny_data import TinyData

from sparserefine_ros.bags import evaluate as evaluate_module
from sparserefine_ros.bags.batch import evaluate_bags
from sparserefine_ros.bags.desk import Desk
from sparserefine_ros.bags.report import no_results
from sparserefine_ros.bags.results import BagOptions, FrameRow
from sparserefine_ros.bags.staging import whole_folder
from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import BagError, DatasetError
from sparserefine_ros.evaluation.evaluate import evaluate
from sparserefine_ros.evaluation.evaluation import Evaluation
from sparserefine_ros.evaluation.frames import Contest, FrameEvaluator
from sparserefine_ros.evaluation.scores import FrameScore
from sparserefine_ros.evaluation.storage import read_json, scores_to_json
from sparserefine_ros.evaluation.subset import Subset
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import ALL_MAPS

HOW = PipelineOptions(threads=1)
LABELLED = BagOptions(label_topic="/truth")


def run(bag: Path, out: Path, bundle: Bundle, options: BagOptions = LABELLED) -> dict[str, Any]:
    evaluate_bags([bag], out, bundle, HOW, options)
    return json.loads((out / "metrics.json").read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def without(scores: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in scores.items() if key not in keys}


@pytest.fixture(scope="module")
def results(bag: Path, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not change it."""
    out = tmp_path_factory.mktemp("results") / "drive"
    run(bag, out, bundle)
    return out


def test_scores_equal_those_of_the_data_set(results: Path, bundle: Bundle) -> None:
    expected = scores_to_json(evaluate(bundle, TinyData(FRAMES), HOW), times=False)
    metrics = json.loads((results / "metrics.json").read_text())
    found = metrics["scores"]
    # Multiplications of the refiner are not counted on bags.
    for key in expected.keys() - {"data", "refiner_macs", "variants"}:
        assert found[key] == expected[key], key
    for name, variant in expected["variants"].items():
        assert without(found["variants"][name], "macs") == without(variant, "macs")
    assert expected["variants"]["refined"]["miou"] > 0
    assert metrics["labelled_frames"] == metrics["frames"] == FRAMES


def test_two_runs_write_the_same_files(
    bag: Path, results: Path, bundle: Bundle, tmp_path: Path
) -> None:
    again = tmp_path / "drive"
    run(bag, again, bundle)
    names = {path.relative_to(results) for path in results.rglob("*") if path.is_file()}
    assert names == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    timed = {"timing.csv", "timing.json", "scores.json", "report.html"}
    same = [name for name in names if str(name) not in timed]
    assert {"metrics.json", "frames.csv", "maps/maps.mcap"} <= {str(name) for name in same}
    for name in same:
        assert (results / name).read_bytes() == (again / name).read_bytes(), name
    assert "latency" not in (results / "metrics.json").read_text()


@pytest.mark.parametrize("streams", [1, 3])
def test_several_streams_write_the_same_files(
    streams: int, bag: Path, results: Path, bundle: Bundle, tmp_path: Path
) -> None:
    again = tmp_path / "drive"
    evaluate_bags([bag], again, bundle, HOW, replace(LABELLED, streams=streams))
    for name in ("metrics.json", "frames.csv", "maps/maps.mcap"):
        assert (results / name).read_bytes() == (again / name).read_bytes(), name
    timing = json.loads((again / "timing.json").read_text())
    assert (timing["streams"], timing["threads"]) == (streams, 1)


@pytest.mark.parametrize(
    ("cores", "options", "streams", "jobs", "expected"),
    [
        (2, {}, 0, 1, (1, 2)),
        (9, {}, 0, 1, (4, 2)),
        (1, {}, 0, 1, (1, 1)),
        (2, {}, 0, 2, (1, 1)),
        (8, {}, 0, 2, (2, 2)),
        (8, {}, 1, 1, (8, 1)),
        (2, {}, 4, 1, (1, 4)),
        (2, {"threads": 2}, 0, 1, (2, 1)),
        (4, {"threads": 2}, 0, 1, (2, 2)),
        (8, {"device": "cuda:1"}, 0, 1, (8, 1)),
    ],
)
def test_cores_are_divided(
    cores: int,
    options: dict[str, Any],
    streams: int,
    jobs: int,
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate_module, "available_cores", lambda: cores)
    how, chosen = evaluate_module.share_cores(PipelineOptions(**options), streams, jobs)
    assert (how.threads, chosen) == expected
    assert how == replace(PipelineOptions(**options), threads=expected[0])


def test_frames_and_times_are_told_one_by_one(results: Path, bundle: Bundle) -> None:
    frames, times = rows(results / "frames.csv"), rows(results / "timing.csv")
    assert [row["stamp"] for row in frames] == [f"0.{k}00000000" for k in range(1, 6)]
    assert [row["stamp"] for row in times] == [row["stamp"] for row in frames]
    pipeline = Pipeline(bundle, HOW)
    for index, row in enumerate(frames):
        prediction = pipeline(TinyData(FRAMES)[index].image, ALL_MAPS)
        assert prediction.entropy is not None
        assert int(row["refined_pixels"]) == prediction.refined_pixels
        assert float(row["mean_entropy_nats"]) == pytest.approx(prediction.entropy.mean(), abs=1e-6)
        assert (row["width"], row["height"]) == ("44", "30")
    alone = evaluate(bundle, TinyData(FRAMES), HOW)
    (variant,) = {alone.final}
    assert [row["mean_iou"] for row in frames] == [
        f"{frame.mean_iou[variant]:.6f}" for frame in alone.frames
    ]
    for row in times:
        stages = [float(value) for key, value in row.items() if key.endswith("_ms")]
        assert sum(stages[1:]) == pytest.approx(stages[0], abs=0.01)


def test_maps_are_the_pipelines_with_the_headers_of_the_pictures(
    results: Path, bundle: Bundle
) -> None:
    pipeline = Pipeline(bundle, HOW)
    seen: dict[str, int] = {}
    with AnyReader([results / "maps"], default_typestore=STORE) as reader:
        for connection, log_ns, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            index = seen.get(connection.topic, 0)
            seen[connection.topic] = index + 1
            stamp = message.header.stamp
            assert stamp.sec * 10**9 + stamp.nanosec == log_ns == (index + 1) * 10**8
            assert message.header.frame_id == "front"
            prediction = pipeline(TinyData(FRAMES)[index].image, ALL_MAPS)
            if connection.topic == "/segment/overlay/compressed":
                picture = cv2.imdecode(message.data, cv2.IMREAD_COLOR)
                assert picture.shape == (30, 44, 3)
                assert message.format == "rgb8; jpeg compressed bgr8"
                continue
            expected = {
                "/segment/labels": ("mono8", prediction.labels),
                "/segment/entropy": ("32FC1", prediction.entropy),
                "/segment/refined": ("mono8", prediction.refined * np.uint8(255)),
            }
            encoding, pixels = expected[connection.topic]
            assert message.encoding == encoding
            assert pixels is not None
            assert message.step == 44 * pixels.itemsize
            found = message.data.view(pixels.dtype).reshape(message.height, message.width)
            np.testing.assert_array_equal(found, pixels)
    assert len(seen) == 4
    assert set(seen.values()) == {FRAMES}


def test_the_report_shows_plots_and_worst_frames(results: Path) -> None:
    page = (results / "report.html").read_text()
    for text in ("mean IoU over seconds", "refined share over", "mean entropy, nats over"):
        assert text in page
    assert "pipeline latency, ms over" in page
    frames = sorted(rows(results / "frames.csv"), key=lambda row: float(row["mean_iou"]))
    headings = [page.index(f"<h3>{row['stamp']}: ") for row in frames]
    assert headings == sorted(headings)
    for path in (results / "pictures").iterdir():
        assert f"pictures/{path.name}" in page


def test_parts_of_a_bag_merge_into_the_whole(
    bag: Path, results: Path, bundle: Bundle, tmp_path: Path
) -> None:
    parts = []
    for shard in (1, 2):
        options = replace(LABELLED, subset=Subset(0, shard, 2), maps=False, pictures=0)
        assert run(bag, tmp_path / str(shard), bundle, options)["frames"] == (3, 2)[shard - 1]
        parts.append(read_json(tmp_path / str(shard) / "scores.json"))
        assert not (tmp_path / str(shard) / "maps").exists()
        assert not (tmp_path / str(shard) / "pictures").exists()
    merged = scores_to_json(Evaluation.merged(parts), times=False)
    assert merged == scores_to_json(read_json(results / "scores.json"), times=False)


def test_a_part_without_labels_merges_with_the_others(bundle: Bundle, tmp_path: Path) -> None:
    """Labels of every second picture, as of key frames, all fall into one of two parts."""
    data, entries = TinyData(4), []
    for k in range(4):
        entries.append(raw(data[k].image, "rgb8", k + 1))
        if k % 2 == 0:
            entries.append(raw(data[k].labels, "mono8", k + 1, topic="/truth"))
    bag = record(tmp_path / "bag", entries)
    whole = run(bag, tmp_path / "whole", bundle)
    parts = []
    for shard, labelled in ((1, 2), (2, 0)):
        options = replace(LABELLED, subset=Subset(0, shard, 2))
        metrics = run(bag, tmp_path / str(shard), bundle, options)
        assert metrics["labelled_frames"] == labelled
        assert (metrics["scores"] is None) == (labelled == 0)
        parts.append(read_json(tmp_path / str(shard) / "scores.json"))
    assert scores_to_json(Evaluation.merged(parts), times=False) == whole["scores"]


def test_without_labels_there_are_no_scores(bundle: Bundle, tmp_path: Path) -> None:
    bag = tiny_bag(tmp_path / "bag", 3, labels=False)
    metrics = run(bag, tmp_path / "out", bundle, BagOptions(pictures=2))
    assert metrics["scores"] is None
    assert metrics["labelled_frames"] == 0
    assert metrics["refined_share"] > 0
    assert {row["mean_iou"] for row in rows(tmp_path / "out" / "frames.csv")} == {""}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mean IoU" not in page
    assert "By mean entropy, highest first;" in page
    names = {path.stem.split("_")[-1] for path in (tmp_path / "out" / "pictures").iterdir()}
    assert names == {"legend", "image", "dense-low", "refined", "entropy"}


def test_some_frames_without_labels(bundle: Bundle, tmp_path: Path) -> None:
    data = TinyData(3)
    entries = [raw(data[k].image, "rgb8", k + 1) for k in range(3)]
    entries.append(raw(data[1].labels, "mono8", 2, topic="/truth", log_ns=1))
    metrics = run(record(tmp_path / "bag", entries), tmp_path / "out", bundle)
    assert (metrics["frames"], metrics["labelled_frames"]) == (3, 1)
    only = evaluate(bundle, TinyData(2), HOW, subset=Subset(0, 2, 2))
    found = metrics["scores"]["variants"]["refined"]["miou"]
    assert found == only.totals(only.final).mean_iou


def test_sizes_that_change_and_broken_pictures(bundle: Bundle, tmp_path: Path) -> None:
    entries = [
        raw(smooth_picture(30, 44), "rgb8", 3),
        raw(smooth_picture(41, 26), "bgr8", 1, log_ns=4),
        Entry("/image", IMAGE, 5, b"\x00\x01\x00\x00"),
    ]
    metrics = run(record(tmp_path / "bag", entries), tmp_path / "out", bundle, BagOptions())
    assert metrics["messages"]["sizes"] == {"26x41": 1, "44x30": 1}
    assert metrics["messages"]["rejected"] == {"message": 1}
    assert metrics["messages"]["stamps_back"] == 1
    page = (tmp_path / "out" / "report.html").read_text()
    for text in ("in 2 sizes", "in 2 encodings", "1 pictures could not be used", "stamped earlier"):
        assert text in page
    assert "number of the picture" in page


def test_a_failure_leaves_the_earlier_results_and_nothing_half_done(
    bag: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    before = run(bag, out, bundle, replace(LABELLED, subset=Subset(2), maps=False))
    # What a killed run leaves.
    (tmp_path / ".out.partial" / "out").mkdir(parents=True)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sparserefine_ros.bags.desk.write_maps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(bag, out, bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((out / "metrics.json").read_text()) == before
    assert run(bag, out, bundle)["frames"] == FRAMES
    assert (out / "maps" / "metadata.yaml").is_file()


def test_other_folders_are_not_replaced(bag: Path, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(BagError, match="expected a new folder, or one with an earlier result"):
        run(bag, tmp_path, bundle)
    # As other commands name their results too.
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(BagError, match=r"it also holds precious.txt; choose another"):
        run(bag, tmp_path, bundle)
    assert (tmp_path / "precious.txt").is_file()
    with pytest.raises(BagError, match="cannot write /dev/null/out"):
        run(bag, Path("/dev/null/out"), bundle)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.txt", "it also holds notes.txt"),
        ("pictures/holiday.jpg", "it also holds pictures/holiday.jpg"),
        ("maps/more.mcap", "maps is not its own, it also holds more.mcap"),
        ("trained/weights.pt", "it also holds trained"),
    ],
)
def test_results_with_something_else_among_them_are_not_replaced(
    name: str, text: str, results: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    shutil.copytree(results, folder)
    assert no_results(folder) == ""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(BagError, match=text), whole_folder(folder, obstacle=no_results):
        pass
    assert (folder / name).read_text() == "x"
    (folder / name).unlink()
    (folder / "metrics.json").unlink()
    assert no_results(folder) == "there is no metrics.json"


def test_no_usable_picture(bundle: Bundle, tmp_path: Path) -> None:
    bag = record(tmp_path / "bag", [raw(smooth_picture(30, 44), "32FC9", 1)])
    with pytest.raises(BagError, match="none of 1 messages is one; message 0: expected one of"):
        run(bag, tmp_path / "out", bundle, BagOptions())


def test_labels_of_other_classes(bundle: Bundle, tmp_path: Path) -> None:
    entries = [
        raw(smooth_picture(30, 44), "rgb8", 1),
        raw(np.full((30, 44), 7, np.uint8), "mono8", 1, topic="/truth"),
    ]
    with pytest.raises(DatasetError, match=r"0.000000001: expected class ids 0 .. 2 or 255, got 7"):
        run(record(tmp_path / "bag", entries), tmp_path / "out", bundle)
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_reader_reaches_the_caller(
    bag: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(evaluate_module.TopicLabels):
        def __call__(self, frame: Any) -> Any:
            if frame.index == 2:
                raise DatasetError("third picture")
            return super().__call__(frame)

    monkeypatch.setattr(evaluate_module, "TopicLabels", Broken)
    with pytest.raises(DatasetError, match="third picture"):
        run(bag, tmp_path / "out", bundle)


def test_worst_frames_are_not_neighbours(bundle: Bundle, tmp_path: Path) -> None:
    bag = tiny_bag(tmp_path / "bag", 12, labels=False)
    run(bag, tmp_path / "out", bundle, BagOptions(pictures=1, maps=False))
    entropies = [float(r["mean_entropy_nats"]) for r in rows(tmp_path / "out" / "frames.csv")]
    shown = {p.name[:5] for p in (tmp_path / "out" / "pictures").glob("*_image.jpg")}
    assert shown == {f"{int(np.argmax(entropies)):05d}"}
    # Of 40 frames and 2 pictures, those kept are 5 apart.
    desk = Desk(FrameEvaluator(Contest(bundle, HOW)), None, BagOptions(pictures=2), frames=40)
    for index, badness in enumerate([5, 6, 4, 3, 1, 2, 2.5, 9, 8]):
        keep(desk, index, badness)
    assert [frame.score.index for frame in desk.worst()] == [7, 1]


def keep(desk: Desk, index: int, entropy: float) -> None:
    score = FrameScore(index, "", {}, 0.0, {}, None, None, None, None)
    row = FrameRow(index, "", index, (1, 1), 0, entropy, False, score)
    desk._keep(row, None, None)  # type: ignore[arg-type]
