# SPDX-License-Identifier: Apache-2.0
"""Which classes are mistaken for which: IoU and pixel accuracy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.datasets import IGNORED_LABEL
from sparserefine_ros.evaluation.counts import Counts, count_pairs, ratio


class ConfusionMatrix(Counts):
    """Counts of (true class, predicted class) pairs over any number of frames.

    Attributes:
        counts: int64 [C, C], rows are true classes, columns predicted classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, classes)

    def update(self, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
        """Add one frame.

        Args:
            truth: uint8, of any shape, class ids, 255 ignored.
            predicted: uint8, of the same shape, class ids.

        Raises:
            ValueError: a label is no class id, nor 255 in the truth.
        """
        classes = self.counts.shape[0]
        highest = int(predicted.max(initial=0))
        if highest >= classes:
            raise _no_class("predicted", highest, classes)
        pairs = count_pairs(truth, predicted, classes)
        pairs[IGNORED_LABEL] = 0
        if pairs[classes:].any():
            raise _no_class("true", int(np.flatnonzero(pairs.any(1))[-1]), classes)
        self.counts += pairs[:classes]

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class, [C], 0 .. 1; NaN for a class never seen."""
        hits = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        with np.errstate(invalid="ignore"):
            return np.where(self.counts.sum(1) > 0, hits / union, np.nan)

    def mean_iou(self) -> float:
        """Mean over the classes present in the truth, 0 .. 1; NaN without any labelled pixel."""
        iou = self.iou()
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    def class_accuracy(self) -> NDArray[np.float64]:
        """Share of each class's pixels predicted right, [C], 0 .. 1; NaN for a class never seen."""
        rows = zip(np.diag(self.counts), self.counts.sum(1), strict=True)
        return np.array([ratio(hits, pixels) for hits, pixels in rows])

    def pixel_accuracy(self) -> float:
        """Share of labelled pixels predicted right, 0 .. 1; NaN without any."""
        return ratio(np.trace(self.counts), self.counts.sum())


def _no_class(name: str, label: int, classes: int) -> ValueError:
    return ValueError(
        f"expected {name} labels below {classes}, got {label}; are these the right classes?"
    )
