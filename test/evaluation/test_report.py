# SPDX-License-Identifier: Apache-2.0
"""The report folder is whole, its links resolve, its texts are escaped."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from conftest import make_tiny_bundle, smooth_picture, with_sections
from tiny_data import TinyData

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import ConfigurationError, ImageError
from sparserefine_ros.evaluation.evaluate import evaluate
from sparserefine_ros.evaluation.evaluation import Evaluation
from sparserefine_ros.evaluation.page import whole_page
from sparserefine_ros.evaluation.pictures import Gallery
from sparserefine_ros.evaluation.report import prepare_report, write_report
from sparserefine_ros.evaluation.scores import Variant
from sparserefine_ros.evaluation.storage import read_json, scores_to_json
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import ALL_MAPS
from sparserefine_ros.render import draw_changes

FILES = {"pictures", "report.html", "scores.csv", "scores.json"}
VOID = {"meta", "img", "link", "br", "path", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Links, texts by element, and whether elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def gallery(bundle: Bundle) -> Gallery:
    return Gallery(bundle, TinyData(5), PipelineOptions(threads=1), count=3)


def test_pictures_of_an_oracle(tmp_path: Path) -> None:
    folder = make_tiny_bundle(tmp_path / "tiny")
    bundle = with_sections(folder, selector={"kind": "oracle"})
    options = PipelineOptions(threads=1)
    evaluation = evaluate(bundle, TinyData(2), options, data="tiny")
    report = write_report(evaluation, tmp_path / "out", Gallery(bundle, TinyData(2), options, 2))
    assert "Selector: oracle, no pixel budget" in report.read_text(encoding="utf-8")


def test_report_is_whole_and_every_link_resolves(
    whole: Evaluation, gallery: Gallery, tmp_path: Path
) -> None:
    path = write_report(whole, tmp_path / "deep" / "report", gallery)
    folder = path.parent
    assert {file.name for file in folder.iterdir()} == FILES
    page = Page(path.read_text(encoding="utf-8"))
    linked = {(folder / unquote(link)).resolve() for link in page.links}
    assert linked == {file.resolve() for file in (folder / "pictures").iterdir()}
    assert len(linked) == 1 + 3 * 6
    assert all(cv2.imread(str(file)) is not None for file in linked)
    assert scores_to_json(read_json(folder / "scores.json")) == scores_to_json(whole)
    assert "svg" in page.tags


def test_worst_frames_are_shown_first(whole: Evaluation, gallery: Gallery, tmp_path: Path) -> None:
    page = Page(write_report(whole, tmp_path, gallery).read_text(encoding="utf-8"))
    shown = [text.split(":")[0] for text in page.texts if ": mean IoU" in text]
    assert shown == [frame.name for frame in whole.worst_frames(3)]


def test_page_holds_the_scores(whole: Evaluation, tmp_path: Path) -> None:
    page = Page(write_report(whole, tmp_path, None).read_text(encoding="utf-8"))
    for variant in Variant:
        totals = whole.totals(variant)
        assert f"{100 * totals.mean_iou:.2f}" in page.texts
        assert f"{100 * totals.calibration_error:.2f}" in page.texts
        for row in whole.classes(variant):
            assert f"{100 * row.iou:.2f}" in page.texts
            assert f"{100 * row.boundary_iou:.2f}" in page.texts
    assert "No pictures were drawn." in page.texts
    assert list((tmp_path / "pictures").iterdir()) == []


def test_texts_are_escaped(whole: Evaluation, gallery: Gallery, tmp_path: Path) -> None:
    evil = "</p><script>alert(1)</script>"
    setting = dataclasses.replace(whole.setting, bundle=evil, class_names=(evil, "car", "sky"))
    evaluation = dataclasses.replace(
        whole, setting=setting, data=evil, notes=(evil,), machines=(evil,)
    )
    page = Page(write_report(evaluation, tmp_path, gallery).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert evil in page.texts
    assert any(text.startswith("tiny <") for text in page.texts)


def test_changes_are_drawn_from_the_pipelines_maps(
    whole: Evaluation, gallery: Gallery, tmp_path: Path
) -> None:
    write_report(whole, tmp_path, gallery)
    frame = whole.worst_frames(1)[0]
    sample = gallery.dataset[frame.index]
    result = Pipeline(gallery.bundle, gallery.options)(sample.image, ALL_MAPS)
    expected = draw_changes(sample.labels, result.dense_labels, result.labels)
    (file,) = (tmp_path / "pictures").glob(f"{frame.index:05d}_*_changes.png")
    assert np.array_equal(cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB), expected)


def test_an_earlier_report_is_replaced_and_other_files_stay(
    whole: Evaluation, gallery: Gallery, tmp_path: Path
) -> None:
    write_report(whole, tmp_path, gallery)
    (tmp_path / "notes.txt").write_text("mine")
    before = (tmp_path / "report.html").read_text()
    write_report(whole, tmp_path, dataclasses.replace(gallery, count=1))
    assert {file.name for file in tmp_path.iterdir()} == {*FILES, "notes.txt"}
    assert len(list((tmp_path / "pictures").iterdir())) == 1 + 6
    assert (tmp_path / "report.html").read_text() != before


def test_pictures_of_another_kind_are_not_replaced(whole: Evaluation, tmp_path: Path) -> None:
    mine = tmp_path / "pictures" / "holiday.jpg"
    mine.parent.mkdir()
    mine.write_bytes(b"sun")
    for start in (lambda: prepare_report(tmp_path), lambda: write_report(whole, tmp_path, None)):
        with pytest.raises(
            ConfigurationError, match="where pictures is not of such a report; choose"
        ):
            start()
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    assert mine.read_bytes() == b"sun"


def test_what_is_no_report_s_is_not_replaced(
    whole: Evaluation, gallery: Gallery, tmp_path: Path
) -> None:
    (tmp_path / "scores.csv").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"where scores\.csv is not of such a report"):
        prepare_report(tmp_path)
    (tmp_path / "scores.csv").unlink()
    write_report(whole, tmp_path, gallery)
    (tmp_path / "pictures" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"where pictures/notes\.txt is not of such"):
        write_report(whole, tmp_path, gallery)
    assert (tmp_path / "pictures" / "notes.txt").read_text() == "mine"


def test_a_failure_leaves_the_earlier_report(
    whole: Evaluation, gallery: Gallery, tmp_path: Path
) -> None:
    class Broken(TinyData):
        def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
            sample = super().__getitem__(index)
            return dataclasses.replace(sample, image=smooth_picture(8, 8)[..., 0])

    write_report(whole, tmp_path, gallery)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ImageError):
        write_report(whole, tmp_path, dataclasses.replace(gallery, dataset=Broken(5)))
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_a_place_that_is_taken(whole: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ConfigurationError, match=r"where report\.html is not of such a report"):
        write_report(whole, tmp_path, None)


def test_the_report_of_a_bag_is_not_replaced(tmp_path: Path) -> None:
    page = whole_page("a bag", [], generator="sparserefine bag evaluate")
    (tmp_path / "report.html").write_text(page)
    with pytest.raises(ConfigurationError, match=r"where report\.html is not of such a report"):
        prepare_report(tmp_path)


def test_page_has_no_outside_references(whole: Evaluation, tmp_path: Path) -> None:
    text = write_report(whole, tmp_path, None).read_text(encoding="utf-8")
    outside = set(re.findall(r"https?://[^\"' >]+", text))
    assert outside == {"http://www.w3.org/2000/svg"}
