# SPDX-License-Identifier: Apache-2.0
"""Recall of small objects: connected pieces of one class in the truth.

Shape legend: H, W picture; C classes; K small objects of a frame; P their pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.evaluation.counts import Counts, ratio

# At 2048 x 1024 this is 1048 pixels, about the 32 x 32 below which COCO calls an object small.
SMALL_OBJECT_SHARE: Final = 0.0005
# What is smaller is mostly stray pixels of the labelling along the borders of classes.
SMALLEST_OBJECT_PX: Final = 10

_OBJECTS: Final = 0
_FOUND: Final = 1


@dataclass(frozen=True)
class SmallObjects:
    """The small objects of one frame.

    Attributes:
        pixels: int64 [P], flat indices of their pixels, object by object.
        areas: int64 [K], pixels of each object.
        classes: int64 [K], class of each object.
    """

    pixels: NDArray[np.int64]
    areas: NDArray[np.int64]
    classes: NDArray[np.int64]


def find_small_objects(
    truth: NDArray[np.uint8], classes: int, *, max_share: float = SMALL_OBJECT_SHARE
) -> SmallObjects:
    """Find the 8-connected pieces of each class of at least 10 pixels and below a share.

    Args:
        truth: uint8 [H, W], class ids, 255 ignored.
        classes: C.
        max_share: share of the picture that a small object stays below, above 0 .. 1.
    """
    pixels, areas, class_of = [], [], []
    present = np.bincount(truth.ravel(), minlength=classes)[:classes]
    for label in np.flatnonzero(present).tolist():
        mask = (truth == label).view(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        # 8-connected pieces cannot be closer than two pixels; half the bytes take half the time.
        most = ((height + 1) // 2) * ((width + 1) // 2)
        _, pieces, stats, _ = cv2.connectedComponentsWithStats(
            mask[top : top + height, left : left + width],
            connectivity=8,
            ltype=cv2.CV_16U if most < 2**16 - 1 else cv2.CV_32S,
        )
        area = stats[:, cv2.CC_STAT_AREA]
        small = (area >= SMALLEST_OBJECT_PX) & (area < max_share * truth.size)
        small[0] = False  # the background: every other class
        for piece in np.flatnonzero(small).tolist():
            x, y, wide, high, _ = stats[piece].tolist()
            rows, columns = np.nonzero(pieces[y : y + high, x : x + wide] == piece)
            pixels.append((rows + (top + y)) * truth.shape[1] + (columns + (left + x)))
        areas += area[small].tolist()
        class_of += [label] * int(small.sum())
    return SmallObjects(
        np.concatenate(pixels) if pixels else np.zeros(0, np.int64),
        np.array(areas, np.int64),
        np.array(class_of, np.int64),
    )


class ObjectRecall(Counts):
    """How many small objects were found: at least half of their pixels predicted right.

    Attributes:
        counts: int64 [C, 2]; columns are small objects and those found.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, 2)

    def update(self, objects: SmallObjects, predicted: NDArray[np.uint8]) -> None:
        """Add one frame: its small objects; predicted class ids uint8 [H, W]."""
        if not objects.areas.size:
            return
        right = predicted.ravel()[objects.pixels] == objects.classes.repeat(objects.areas)
        starts = np.cumsum(objects.areas) - objects.areas
        found = 2 * np.add.reduceat(right, starts, dtype=np.int64) >= objects.areas
        np.add.at(self.counts[:, _OBJECTS], objects.classes, 1)
        np.add.at(self.counts[:, _FOUND], objects.classes[found], 1)

    @property
    def objects(self) -> NDArray[np.int64]:
        """Small objects of each class, [C]."""
        return self.counts[:, _OBJECTS]

    def by_class(self) -> NDArray[np.float64]:
        """Found share of each class, [C], 0 .. 1; NaN for a class without small objects."""
        return np.array([ratio(found, objects) for objects, found in self.counts])

    def recall(self) -> float:
        """Found share of all small objects, 0 .. 1; NaN when there was none."""
        return ratio(self.counts[:, _FOUND].sum(), self.counts[:, _OBJECTS].sum())
