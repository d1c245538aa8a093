# SPDX-License-Identifier: Apache-2.0
"""Data sets of picture files with a label file each: found, paired by name, read when asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparserefine_ros.data.label_files import LabelDecoder, read_label_file, read_picture
from sparserefine_ros.data.sample import Colour, Sample, checked_sample
from sparserefine_ros.errors import DatasetError

# Name and RGB colour of each class, in label order.
Legend = tuple[tuple[str, Colour], ...]


@dataclass(frozen=True)
class Origin:
    """How error texts name a data set and what they advise.

    Attributes:
        title: name of the data set.
        remedy: what to do when files are missing.
    """

    title: str
    remedy: str


@dataclass(frozen=True)
class Pair:
    """A picture file and its label file; `name` is unique within the data set."""

    name: str
    picture: Path
    labels: Path


class PairedDataset:
    """Labelled pictures on disk.

    Args:
        pairs: files in order.
        legend: the classes.
        decode: turns the pixels of a label file into class ids.
        origin: for error texts.
        oriented: whether the labels fit the picture as its EXIF orientation shows it, or as it is
            stored.

    Raises:
        DatasetError: there is no pair, a file is missing or two pictures share a name; when
            indexed: a file is broken, sizes differ, or labels are wrong.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        legend: Legend,
        decode: LabelDecoder,
        *,
        origin: Origin,
        oriented: bool = False,
    ) -> None:
        self.class_names: tuple[str, ...] = tuple(name for name, _ in legend)
        self.colours: tuple[Colour, ...] = tuple(colour for _, colour in legend)
        _check_pairs(pairs, origin)
        self._pairs = tuple(pairs)
        self._decode = decode
        self._oriented = oriented

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self._pairs[index]
        image = read_picture(pair.picture, oriented=self._oriented)
        labels = self._decode(read_label_file(pair.labels), pair.labels)
        return checked_sample(pair.name, image, labels, classes=len(self.class_names))


def _check_pairs(pairs: Sequence[Pair], origin: Origin) -> None:
    if not pairs:
        raise DatasetError(
            f"expected at least one {origin.title} picture in the split, got none; {origin.remedy}"
        )
    for kind, paths in (
        ("picture", [pair.picture for pair in pairs]),
        ("label", [pair.labels for pair in pairs]),
    ):
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise DatasetError(
                f"expected a {kind} file for each of {len(pairs)} {origin.title} samples, "
                f"{len(missing)} are missing, first {missing[0]}; {origin.remedy}"
            )
    seen: dict[str, Path] = {}
    for pair in pairs:
        if pair.name in seen:
            raise DatasetError(
                f"expected one {origin.title} picture of each name, got {seen[pair.name]} and "
                f"{pair.picture}; remove or rename one of them"
            )
        seen[pair.name] = pair.picture


def find_pictures(
    folder: Path, pattern: str, origin: Origin, *, suffixes: Collection[str] | None = None
) -> list[Path]:
    """List the pictures that fit a glob pattern below a folder, sorted by path.

    Args:
        folder: where to look.
        pattern: glob pattern relative to it.
        origin: for error texts.
        suffixes: file name endings to keep, lower case; a file's own may be upper case.

    Raises:
        DatasetError: there is none.
    """
    pictures = sorted(
        path
        for path in folder.glob(pattern)
        # Archives packed on a Mac hold a hidden companion of each file.
        if not path.name.startswith(".") and (suffixes is None or path.suffix.lower() in suffixes)
    )
    if not pictures:
        endings = f" ({' '.join(suffixes)})" if suffixes else ""
        raise DatasetError(
            f"expected {origin.title} pictures at {folder / pattern}{endings}, found none; "
            f"{origin.remedy}"
        )
    return pictures


def pair_by_name(
    pictures: Sequence[Path], images: Path, labels: Path, *, drop: str = "", add: str = ""
) -> list[Pair]:
    """Pair pictures below `images` with PNG files below `labels`, in the same subfolders.

    The name of a sample is its picture's stem without the ending `drop`; the label file is called
    `NAME{add}.png`.
    """
    pairs = []
    for picture in pictures:
        name = picture.stem.removesuffix(drop)
        subfolder = picture.parent.relative_to(images)
        pairs.append(Pair(name, picture, labels / subfolder / f"{name}{add}.png"))
    return pairs
