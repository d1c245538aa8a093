# SPDX-License-Identifier: Apache-2.0
"""Labelled pictures behind one protocol, opened by a short text.

A data set is named `KIND:ROOT`, where ROOT is a folder, or
`street[:SEED[:COUNT[:WIDTHxHEIGHT]]]`; docs/datasets.md lists the kinds.
Environment variables in it are expanded: `camvid:$CAMVID`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from sparserefine_ros.data.folder import folder
from sparserefine_ros.data.layouts import bdd100k, camvid, cityscapes, deepglobe, isic, voc
from sparserefine_ros.data.sample import (
    Colour,
    Sample,
    SegmentationDataset,
    Split,
    checked_sample,
)
from sparserefine_ros.data.street.dataset import STREET_FORM, Street, street_from_text
from sparserefine_ros.errors import DatasetError
from sparserefine_ros.files import expanded
from sparserefine_ros.records import IGNORED_LABEL

__all__ = [
    "IGNORED_LABEL",
    "Colour",
    "Sample",
    "SegmentationDataset",
    "Split",
    "Street",
    "checked_sample",
    "iterate",
    "open_dataset",
]

_IN_A_FOLDER: Final[Mapping[str, Callable[[Path, Split], SegmentationDataset]]] = {
    "bdd100k": bdd100k,
    "camvid": camvid,
    "cityscapes": cityscapes,
    "deepglobe": deepglobe,
    "folder": folder,
    "isic": isic,
    "voc": voc,
}


def open_dataset(spec: str, split: Split) -> SegmentationDataset:
    """Open a data set by its text form.

    Args:
        spec: `KIND:ROOT` or `street[:SEED[:COUNT[:WIDTHxHEIGHT]]]`.
        split: "train" or "val".

    Raises:
        DatasetError: unknown form, or the data set is incomplete.
    """
    text = os.path.expandvars(spec)
    if "$" in text:
        raise DatasetError(
            f"expected the environment variable in {spec!r} to be set; export it first"
        )
    kind, _, rest = text.partition(":")
    if kind in _IN_A_FOLDER and rest:
        return _IN_A_FOLDER[kind](expanded(rest), split)
    if kind == "street":
        return street_from_text(rest, split)
    known = ", ".join(f"{name}:ROOT" for name in _IN_A_FOLDER)
    raise DatasetError(
        f"expected {known} or {STREET_FORM}, got {spec!r}; name the data set in one of these forms"
    )


def iterate(dataset: SegmentationDataset) -> Iterator[Sample]:
    """Yield every sample in order."""
    for index in range(len(dataset)):
        yield dataset[index]
