# SPDX-License-Identifier: Apache-2.0
"""What a labelled data set is: samples, their checks, and the protocol every data set fulfils."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.errors import DatasetError
from sparserefine_ros.records import IGNORED_LABEL

Split = Literal["train", "val"]
Colour = tuple[int, int, int]


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
        colours: RGB of each class, 0 .. 255, in label order.
    """

    class_names: tuple[str, ...]
    colours: tuple[Colour, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def checked_sample(
    name: str, image: NDArray[np.uint8], labels: NDArray[Any], *, classes: int
) -> Sample:
    """Build a `Sample` from a picture, uint8 [H, W, 3] RGB, and its labels.

    Raises:
        DatasetError: the labels are not uint8 [H, W], or hold something else than class ids
            0 .. classes - 1 and 255.
    """
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.shape != image.shape[:2]:
        raise DatasetError(
            f"{name}: expected labels uint8 {list(image.shape[:2])} like the picture, "
            f"got {labels.dtype} {list(labels.shape)}; re-export the label file"
        )
    wrong = (labels >= classes) & (labels != IGNORED_LABEL)
    if wrong.any():
        raise DatasetError(
            f"{name}: expected class ids 0 .. {classes - 1} or {IGNORED_LABEL}, "
            f"got {int(labels[wrong][0])}; map the labels to class ids first"
        )
    return Sample(name, image, labels)
