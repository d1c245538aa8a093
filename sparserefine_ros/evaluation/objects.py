# SPDX-License-Identifier: Apache-2.0
"""Recall of small objects: connected pieces of one class in the truth.

Shape legend: H, W picture; C classes; K small objects of a frame.
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
        ids: int32 [H, W], number of the object each pixel belongs to, from 1; 0 for none.
        areas: int64 [K + 1], pixels of each object; of 0 at place 0.
        classes: int64 [K + 1], class of each object; 0 at place 0.
    """

    ids: NDArray[np.int32]
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
    ids = np.zeros(truth.shape, np.int32)
    areas, class_of = [0], [0]
    present = np.bincount(truth.ravel(), minlength=classes)[:classes]
    for label in np.flatnonzero(present).tolist():
        mask = (truth == label).view(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        box = slice(top, top + height), slice(left, left + width)
        # 8-connected pieces cannot be closer than two pixels; half the bytes take half the time.
        most = ((height + 1) // 2) * ((width + 1) // 2)
        _, pieces, stats, _ = cv2.connectedComponentsWithStats(
            mask[box], connectivity=8, ltype=cv2.CV_16U if most < 2**16 - 1 else cv2.CV_32S
        )
        piece_areas = stats[:, cv2.CC_STAT_AREA]
        small = (piece_areas >= SMALLEST_OBJECT_PX) & (piece_areas < max_share * truth.size)
        small[0] = False  # the background: every other class
        if not small.any():
            continue
        id_of_piece = np.where(small, np.cumsum(small) + len(areas) - 1, 0).astype(np.int32)
        ids[box] += id_of_piece.take(pieces)
        areas += piece_areas[small].tolist()
        class_of += [label] * int(small.sum())
    return SmallObjects(ids, np.array(areas, np.int64), np.array(class_of, np.int64))


class ObjectRecall(Counts):
    """How many small objects were found: at least half of their pixels predicted right.

    Attributes:
        counts: int64 [C, 2]; columns are small objects and those found.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, 2)

    def update(
        self, objects: SmallObjects, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]
    ) -> None:
        """Add one frame: its small objects; class ids uint8 [H, W]."""
        right = np.bincount(objects.ids[predicted == truth], minlength=objects.areas.size)
        found = 2 * right >= objects.areas
        np.add.at(self.counts[:, _OBJECTS], objects.classes[1:], 1)
        np.add.at(self.counts[:, _FOUND], objects.classes[1:][found[1:]], 1)

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
