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

from sparserefine_ros.evaluation.counts import Counts, count_values, ratio

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
    # 8-connected pieces cannot be closer than two pixels; half the bytes take half the time.
    short = ((truth.shape[0] + 1) // 2) * ((truth.shape[1] + 1) // 2) < 2**16 - 1
    numbered = np.zeros(truth.shape, np.uint16 if short else np.int32)
    class_of = [np.zeros(1, np.int64)]  # of each piece; the first is no piece
    before = np.zeros(256, np.int32)  # pieces of the classes before each
    for label in np.flatnonzero(count_values(truth.astype(np.int16), 256)[:classes]).tolist():
        mask = (truth == label).view(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        box = (slice(top, top + height), slice(left, left + width))
        numbers, pieces = cv2.connectedComponents(
            mask[box], connectivity=8, ltype=cv2.CV_16U if short else cv2.CV_32S
        )
        numbered[box] += pieces
        before[label] = sum(map(len, class_of)) - 1
        class_of.append(np.full(numbers - 1, label))
    piece_of = numbered + before.take(truth)
    areas = count_values(piece_of, sum(map(len, class_of)))
    small = (areas >= SMALLEST_OBJECT_PX) & (areas < max_share * truth.size)
    small[0] = False
    pixels = np.flatnonzero(small.take(piece_of))
    order = np.argsort(piece_of.ravel()[pixels], kind="stable")
    return SmallObjects(pixels[order], areas[small], np.concatenate(class_of)[small])


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
