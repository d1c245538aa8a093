# SPDX-License-Identifier: Apache-2.0
"""Data sets of one's own: pictures, index PNGs and a `dataset.yaml` that names the classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from sparserefine_ros.bundle_spec import Byte, ClassSpec
from sparserefine_ros.configuration import Record, read_yaml
from sparserefine_ros.data.label_files import IndexLabels
from sparserefine_ros.data.paired import Origin, PairedDataset, find_pictures, pair_by_name
from sparserefine_ros.data.sample import Split
from sparserefine_ros.errors import DatasetError
from sparserefine_ros.records import IGNORED_LABEL

DATASET_FILE: Final = "dataset.yaml"
PICTURE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

FolderName = Annotated[str, Field(min_length=1)]


class SplitFolders(Record):
    """Folder of each split, relative to `dataset.yaml`."""

    train: FolderName = "train"
    val: FolderName = "val"


class FolderSpec(Record):
    """Content of `dataset.yaml`.

    Attributes:
        classes: names and colours in label order.
        ignored: number in the label files that means unlabelled, unless `label_map` lists it.
        label_map: class id, or the word ignored, for each number in the label files; left out, the
            files hold class ids. Numbers it does not list are mistakes.
        splits: folder of each split.
    """

    classes: tuple[ClassSpec, ...] = Field(min_length=2, max_length=255)
    ignored: Byte = IGNORED_LABEL
    label_map: Mapping[Byte, Byte | Literal["ignored"]] | None = None
    splits: SplitFolders = SplitFolders()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = len(self.classes)
        if len({entry.name for entry in self.classes}) != count:
            raise ValueError("expected unique class names")
        if self.label_map is None:
            if self.ignored < count:
                raise ValueError(
                    f"expected ignored to be no class id 0 .. {count - 1}; "
                    "give a label_map if the files number the classes otherwise"
                )
            return self
        for value, label in self.label_map.items():
            if label != "ignored" and label >= count:
                raise ValueError(
                    f"expected label_map to give class ids 0 .. {count - 1} or the word ignored, "
                    f"{value} has {label}"
                )
        return self

    def values(self) -> dict[int, int]:
        """Class id, or 255, for each number that label files may hold."""
        if self.label_map is None:
            return {
                **{label: label for label in range(len(self.classes))},
                self.ignored: IGNORED_LABEL,
            }
        listed = {
            value: IGNORED_LABEL if label == "ignored" else label
            for value, label in self.label_map.items()
        }
        return {self.ignored: IGNORED_LABEL, **listed}


def folder(root: Path, split: Split) -> PairedDataset:
    """Open `ROOT/SPLIT/images/*` with `ROOT/SPLIT/labels/STEM.png`, as `ROOT/dataset.yaml` says.

    Raises:
        DatasetError: `dataset.yaml` is missing or wrong, or a file of the split is missing.
    """
    path = root / DATASET_FILE
    if not path.is_file():
        raise DatasetError(
            f"expected a file {path} that names the classes; write it as docs/datasets.md shows"
        )
    spec = read_yaml(path, FolderSpec, DatasetError)
    origin = Origin("folder", f"add them, or correct splits in {path}")
    home = root / (spec.splits.train if split == "train" else spec.splits.val)
    images, labels = home / "images", home / "labels"
    pictures = find_pictures(images, "*", origin, suffixes=PICTURE_SUFFIXES)
    pairs = pair_by_name(pictures, images, labels)
    legend = tuple((entry.name, entry.colour) for entry in spec.classes)
    # Labelling tools and the pipeline alike show a picture as its EXIF orientation asks.
    advice = f"give it a class, or the word ignored, in label_map of {path}, or correct the file"
    decode = IndexLabels(spec.values(), advice=advice)
    return PairedDataset(pairs, legend, decode, origin=origin, oriented=True)
