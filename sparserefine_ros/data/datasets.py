# SPDX-License-Identifier: Apache-2.0
"""Labelled pictures: CamVid folders and procedural street scenes behind one protocol.

A data set is named by a short text: `camvid:ROOT` or `street[:SEED[:COUNT[:WIDTHxHEIGHT]]]`.
Environment variables in it are expanded: `camvid:$CAMVID`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sparserefine_ros.data.street import CLASS_NAMES, LARGEST_PX, SMALLEST_PX, StreetScene
from sparserefine_ros.errors import DatasetError

IGNORED_LABEL: Final = 255
Split = Literal["train", "val"]


@dataclass(frozen=True)
class Sample:
    """One labelled picture.

    Attributes:
        name: unique within its data set.
        image: uint8 [H, W, 3], RGB.
        labels: uint8 [H, W], class ids; 255 where unlabelled.
    """

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]


class SegmentationDataset(Protocol):
    """A finite, indexable set of labelled pictures.

    Attributes:
        class_names: names in label order.
    """

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class CamVid:
    """Folders `ROOT/SPLIT/images/NAME.jpg` and `ROOT/SPLIT/labels/NAME.png` with 11 classes.

    Raises:
        DatasetError: a folder or a label file is missing.
    """

    class_names: tuple[str, ...] = CLASS_NAMES

    def __init__(self, root: Path, split: Split) -> None:
        folder = root / split
        self._images = sorted((folder / "images").glob("*.jpg"))
        if not self._images:
            raise DatasetError(
                f"expected CamVid pictures at {folder / 'images'}/*.jpg, found none; "
                "give the folder that holds train/ and val/"
            )
        self._labels = [folder / "labels" / f"{path.stem}.png" for path in self._images]
        missing = [path for path in self._labels if not path.is_file()]
        if missing:
            raise DatasetError(
                f"expected a label file for each picture, {len(missing)} are missing, "
                f"first {missing[0]}; restore the labels/ folder"
            )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        path, labels_path = self._images[index], self._labels[index]
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
        labels = cv2.imread(str(labels_path), cv2.IMREAD_UNCHANGED)
        if bgr is None or labels is None:
            broken = path if bgr is None else labels_path
            raise DatasetError(f"cannot decode {broken}; restore the file")
        return checked_sample(path.stem, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), labels)


def checked_sample(name: str, image: NDArray[Any], labels: NDArray[Any]) -> Sample:
    """Build a `Sample`, refusing label maps of the wrong size, type or value range."""
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.shape != image.shape[:2]:
        raise DatasetError(
            f"{name}: expected labels uint8 {list(image.shape[:2])} like the picture, "
            f"got {labels.dtype} {list(labels.shape)}; re-export the label file"
        )
    wrong = (labels >= len(CLASS_NAMES)) & (labels != IGNORED_LABEL)
    if wrong.any():
        raise DatasetError(
            f"{name}: expected class ids 0 .. {len(CLASS_NAMES) - 1} or {IGNORED_LABEL}, "
            f"got {int(labels[wrong][0])}; map the labels to class ids first"
        )
    return Sample(name, image, labels)


class Street:
    """Procedural street scenes; training and validation never share a seed.

    Args:
        seed: first scene.
        count: number of pictures, each of a scene of its own.
        size: (height, width).

    Raises:
        DatasetError: a number is out of range.
    """

    class_names: tuple[str, ...] = CLASS_NAMES

    def __init__(
        self, split: Split, *, seed: int = 0, count: int = 100, size: tuple[int, int] = (360, 480)
    ) -> None:
        if seed < 0 or count < 1 or min(size) < SMALLEST_PX or max(size) > LARGEST_PX:
            raise DatasetError(
                "expected a street with a seed of 0 or more, at least one picture and sides of "
                f"{SMALLEST_PX} .. {LARGEST_PX} pixels, got seed {seed}, count {count}, "
                f"{size[1]}x{size[0]}"
            )
        # Training streets have seeds from 0 upwards, validation streets from -1 downwards.
        self._first, self._step = (seed, 1) if split == "train" else (-1 - seed, -1)
        self._count = count
        self._size = size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(index)
        seed = self._first + self._step * index
        time_s = float(np.random.default_rng(abs(seed)).uniform(0.0, 60.0))
        frame = StreetScene(seed).render(time_s, height=self._size[0], width=self._size[1])
        return Sample(f"street_{seed}", frame.image, frame.labels)


class Preloaded:
    """Keeps every sample of another data set in memory."""

    def __init__(self, dataset: SegmentationDataset, *, label: str = "loading") -> None:
        self.class_names = dataset.class_names
        self._samples = [dataset[i] for i in tqdm(range(len(dataset)), desc=label, unit="frame")]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]


def open_dataset(spec: str, split: Split) -> SegmentationDataset:
    """Open a data set by its text form.

    Args:
        spec: `camvid:ROOT` or `street[:SEED[:COUNT[:WIDTHxHEIGHT]]]`.
        split: "train" or "val".

    Raises:
        DatasetError: unknown form, or the data set is incomplete.
    """
    expanded = os.path.expandvars(spec)
    if "$" in expanded:
        raise DatasetError(
            f"expected the environment variable in {spec!r} to be set; export it first"
        )
    kind, _, rest = expanded.partition(":")
    if kind == "camvid" and rest:
        return CamVid(Path(rest).expanduser(), split)
    if kind == "street":
        return _street_from_text(rest, spec, split)
    raise DatasetError(
        f"expected camvid:ROOT or street[:SEED[:COUNT[:WIDTHxHEIGHT]]], got {spec!r}; "
        "name the data set in one of these forms"
    )


def _street_from_text(rest: str, spec: str, split: Split) -> Street:
    defaults = ["0", "100", "480x360"]
    fields = rest.split(":") if rest else []
    try:
        seed, count, size = fields + defaults[len(fields) :]
        width, height = (int(side) for side in size.split("x"))
        return Street(split, seed=int(seed), count=int(count), size=(height, width))
    except ValueError as err:
        raise DatasetError(
            f"expected street[:SEED[:COUNT[:WIDTHxHEIGHT]]] with whole numbers, got {spec!r}"
        ) from err


def iterate(dataset: SegmentationDataset) -> Iterator[Sample]:
    """Yield every sample in order."""
    for index in range(len(dataset)):
        yield dataset[index]
