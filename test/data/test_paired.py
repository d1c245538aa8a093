# SPDX-License-Identifier: Apache-2.0
"""What every data set of picture and label files refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import smooth_picture
from data.files import write_picture, write_png, write_turned_jpeg
from numpy.typing import NDArray

from sparserefine_ros.data.label_files import IndexLabels
from sparserefine_ros.data.paired import (
    Origin,
    Pair,
    PairedDataset,
    find_pictures,
    pair_by_name,
)
from sparserefine_ros.errors import DatasetError

LEGEND = (("ground", (1, 2, 3)), ("sky", (4, 5, 6)))
ORIGIN = Origin("meadow", "look elsewhere")
SIZE = (6, 9)
LABELS = np.arange(54, dtype=np.uint8).reshape(SIZE) % 2


def open_pairs(pairs: list[Pair], **options: Any) -> PairedDataset:
    decode = IndexLabels({0: 0, 1: 1, 255: 255})
    return PairedDataset(pairs, LEGEND, decode, origin=ORIGIN, **options)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    found = [Pair(name, tmp_path / f"{name}.png", tmp_path / f"{name}_.png") for name in "ab"]
    for pair in found:
        write_picture(pair.picture, SIZE)
        write_png(pair.labels, LABELS)
    return found


def test_gives_samples_in_order(pairs: list[Pair]) -> None:
    dataset = open_pairs(pairs[::-1])
    assert (dataset.class_names, dataset.colours) == (("ground", "sky"), ((1, 2, 3), (4, 5, 6)))
    assert [dataset[i].name for i in range(len(dataset))] == ["b", "a"]
    assert np.array_equal(dataset[1].labels, LABELS)
    with pytest.raises(IndexError):
        dataset[2]


def test_no_pairs() -> None:
    with pytest.raises(DatasetError, match="one meadow picture in the split, got none; look else"):
        open_pairs([])


@pytest.mark.parametrize("kind", ["picture", "labels"])
def test_a_missing_file(pairs: list[Pair], kind: str) -> None:
    path: Path = getattr(pairs[1], kind)
    path.unlink()
    with pytest.raises(
        DatasetError, match=f"for each of 2 meadow samples, 1 are missing, first {path}; look else"
    ):
        open_pairs(pairs)


def test_two_pictures_of_one_name(pairs: list[Pair]) -> None:
    twin = Pair("a", pairs[1].picture, pairs[1].labels)
    with pytest.raises(DatasetError, match=r"one meadow picture of each name, got .*a.png and .*b"):
        open_pairs([pairs[0], twin])


@pytest.mark.parametrize("length", [0, 20, 100])
@pytest.mark.parametrize("kind", ["picture", "labels"])
def test_a_broken_file(pairs: list[Pair], kind: str, length: int) -> None:
    path: Path = getattr(pairs[1], kind)
    write_png(path, smooth_picture(*SIZE))
    path.write_bytes(path.read_bytes()[:length])
    dataset = open_pairs(pairs)
    assert dataset[0].name == "a"
    with pytest.raises(DatasetError, match=f"cannot decode {path}; restore the file"):
        dataset[1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:, :-1], r"^a: expected labels uint8 \[6, 9\] like the picture, .*\[6, 8\]"),
        (LABELS.T.copy(), r"^a: .*got uint8 \[9, 6\]"),
        (LABELS.astype(np.uint16), r"a_.png: expected labels uint8 .*, got uint16 \[6, 9\]"),
        (LABELS + 1, r"a_.png: expected label values 0 .. 1, 255, got 2 at row 0, column 1"),
        (smooth_picture(*SIZE), r"a_.png: .*got uint8 \[6, 9, 3\]"),
    ],
    ids=["narrow", "turned", "16-bit", "value", "colour"],
)
def test_wrong_labels(pairs: list[Pair], labels: NDArray[Any], message: str) -> None:
    write_png(pairs[0].labels, labels)
    with pytest.raises(DatasetError, match=message):
        open_pairs(pairs)[0]


@pytest.mark.parametrize("oriented", [False, True])
def test_exif_orientation_is_applied_on_demand(tmp_path: Path, oriented: bool) -> None:
    pair = Pair("a", tmp_path / "a.jpg", tmp_path / "a.png")
    write_turned_jpeg(pair.picture)
    write_png(pair.labels, np.zeros((16, 24), np.uint8))
    image = open_pairs([pair], oriented=oriented)[0].image
    assert bool(image[0].mean() > 200) is not oriented
    assert bool(image[-1].mean() > 200) is oriented


def test_finds_pictures_in_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.jpeg", "c.png", "d.txt", "._e.jpg"):
        (tmp_path / name).touch()
    found = find_pictures(tmp_path, "*", ORIGIN, suffixes=(".jpg", ".jpeg", ".png"))
    assert [path.name for path in found] == ["a.jpeg", "b.JPG", "c.png"]
    with pytest.raises(
        DatasetError, match=rf"meadow pictures at {tmp_path}/\* \(.tif .bmp\), found none; look el"
    ):
        find_pictures(tmp_path, "*", ORIGIN, suffixes=(".tif", ".bmp"))


def test_pairs_by_name_in_subfolders() -> None:
    images, labels = Path("images"), Path("labels")
    pairs = pair_by_name([images / "x" / "a_left.png"], images, labels, drop="_left", add="_id")
    assert pairs == [Pair("a", images / "x" / "a_left.png", labels / "x" / "a_id.png")]
