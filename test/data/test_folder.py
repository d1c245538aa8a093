# SPDX-License-Identifier: Apache-2.0
"""A folder of one's own pictures, described by dataset.yaml."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data.files import write_palette_png, write_picture, write_png, write_turned_jpeg

from sparserefine_ros.data.datasets import iterate, open_dataset
from sparserefine_ros.errors import DatasetError

CLASSES = """
classes:
  - {name: soil, colour: [90, 60, 30]}
  - {name: crop, colour: [0, 200, 0]}
  - {name: weed, colour: [200, 0, 0]}
"""
STORED = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)


def make(root: Path, description: str = CLASSES, *, train: str = "train") -> str:
    """A data set with pictures of several formats; returns its text form."""
    for split, names in ((train, ("c.jpg", "a.png", "b.BMP")), ("val", ("d.webp", "e.tif"))):
        for name in names:
            write_picture(root / split / "images" / name, STORED.shape)
            write_png(root / split / "labels" / f"{Path(name).stem}.png", STORED)
    (root / "dataset.yaml").write_text(description)
    return f"folder:{root}"


def test_reads_pictures_of_every_format(tmp_path: Path) -> None:
    spec = make(tmp_path)
    train, val = open_dataset(spec, "train"), open_dataset(spec, "val")
    assert train.class_names == ("soil", "crop", "weed")
    assert train.colours == ((90, 60, 30), (0, 200, 0), (200, 0, 0))
    assert [sample.name for sample in iterate(train)] == ["a", "b", "c"]
    assert [sample.name for sample in iterate(val)] == ["d", "e"]
    for sample in (*iterate(train), *iterate(val)):
        assert sample.image.shape == (2, 3, 3)
        assert np.array_equal(sample.labels, STORED)


def test_palette_files_hold_indices(tmp_path: Path) -> None:
    spec = make(tmp_path)
    write_palette_png(tmp_path / "val" / "labels" / "d.png", STORED)
    assert np.array_equal(open_dataset(spec, "val")[0].labels, STORED)


def test_pictures_are_turned_as_exif_asks(tmp_path: Path) -> None:
    spec = make(tmp_path)
    write_turned_jpeg(tmp_path / "train" / "images" / "c.jpg")
    write_png(tmp_path / "train" / "labels" / "c.png", np.zeros((16, 24), np.uint8))
    assert open_dataset(spec, "train")[2].image[-1].mean() > 200


@pytest.mark.parametrize(
    ("fields", "stored", "labels"),
    [
        ("ignored: 200", [0, 2, 200], [0, 2, 255]),
        ("label_map: {7: 0, 0: 2, 9: ignored}", [7, 0, 9, 255], [0, 2, 255, 255]),
        ("label_map: {0: 0, 255: 1}", [0, 255], [0, 1]),
        ("ignored: 5\nlabel_map: {0: 1, 1: 1}", [0, 1, 5], [1, 1, 255]),
    ],
)
def test_numbers_in_the_files(
    tmp_path: Path, fields: str, stored: list[int], labels: list[int]
) -> None:
    spec = make(tmp_path, CLASSES + fields)
    path = tmp_path / "val" / "labels" / "d.png"
    write_png(path, np.array([stored], np.uint8))
    write_picture(tmp_path / "val" / "images" / "d.webp", (1, len(stored)))
    assert open_dataset(spec, "val")[0].labels.tolist() == [labels]


def test_other_folder_names(tmp_path: Path) -> None:
    spec = make(tmp_path, CLASSES + "splits: {train: parts/first}", train="parts/first")
    assert len(open_dataset(spec, "train")) == 3
    assert len(open_dataset(spec, "val")) == 2


@pytest.mark.parametrize(
    ("fields", "value", "expected"),
    [
        ("", 3, "0 .. 2, 255"),
        ("ignored: 200", 255, "0 .. 2, 200"),
        ("label_map: {7: 0, 9: ignored}", 0, "7, 9, 255"),
    ],
)
def test_a_wrong_number_in_a_file(tmp_path: Path, fields: str, value: int, expected: str) -> None:
    spec = make(tmp_path, CLASSES + fields)
    write_png(tmp_path / "val" / "labels" / "d.png", np.full_like(STORED, value))
    with pytest.raises(DatasetError, match=f"d.png: expected label values {expected}, got {value}"):
        open_dataset(spec, "val")[0]


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("classes: []", "classes: .*at least 2 items"),
        (CLASSES + "classses: 1", "classses: unknown field"),
        (CLASSES.replace("crop", "soil"), "expected unique class names"),
        (CLASSES.replace("200", "300"), "classes.1.colour.1: .*less than or equal to 255"),
        (CLASSES + "ignored: 2", r"expected ignored to be no class id 0 \.\. 2"),
        (CLASSES + "label_map: {4: 3}", r"class ids 0 \.\. 2 or the word ignored, 4 has 3"),
        (CLASSES + "label_map: {4: void}", "label_map.4"),
        (CLASSES + "label_map: {256: 1}", "label_map.256"),
        ("- soil", "expected a mapping of fields, got list"),
    ],
)
def test_a_wrong_description(tmp_path: Path, description: str, message: str) -> None:
    spec = make(tmp_path, description)
    with pytest.raises(DatasetError, match=f"dataset.yaml: .*{message}"):
        open_dataset(spec, "train")


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    spec = make(tmp_path, page.partition("```yaml")[2].partition("```")[0])
    write_png(tmp_path / "val" / "labels" / "d.png", np.array([[0, 1, 2], [3, 9, 255]], np.uint8))
    assert open_dataset(spec, "val")[0].labels.tolist() == [[0, 1, 2], [2, 255, 255]]


def test_no_description(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"expected a file {tmp_path}/dataset.yaml that names"):
        open_dataset(f"folder:{tmp_path}", "train")


def test_no_pictures(tmp_path: Path) -> None:
    spec = make(tmp_path, CLASSES + "splits: {val: test}")
    with pytest.raises(
        DatasetError,
        match=r"pictures at .*/test/images/\* \(.jpg .*\), found none; .*splits in .*yaml",
    ):
        open_dataset(spec, "val")


def test_missing_label_file(tmp_path: Path) -> None:
    spec = make(tmp_path)
    (tmp_path / "train" / "labels" / "b.png").unlink()
    with pytest.raises(DatasetError, match=r"1 are missing, first .*train/labels/b.png"):
        open_dataset(spec, "train")
