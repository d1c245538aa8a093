# SPDX-License-Identifier: Apache-2.0
"""Segmentation metrics that accumulate over frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.datasets import IGNORED_LABEL


class ConfusionMatrix:
    """Counts of (true class, predicted class) pairs over any number of frames.

    Attributes:
        counts: int64 [C, C], rows are true classes, columns predicted classes.
    """

    def __init__(self, classes: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((classes, classes), np.int64)

    def update(self, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
        """Add one frame.

        Args:
            truth: uint8 [H, W], class ids, 255 ignored.
            predicted: uint8 [H, W], class ids.

        Raises:
            ValueError: a label is no class id.
        """
        classes = self.counts.shape[0]
        valid = truth != IGNORED_LABEL
        for name, labels in (("true", truth[valid]), ("predicted", predicted[valid])):
            if labels.size and labels.max() >= classes:
                raise ValueError(
                    f"expected {name} labels below {classes}, got {labels.max()}; "
                    "are these the right classes?"
                )
        pairs = truth[valid].astype(np.int64) * classes + predicted[valid]
        self.counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

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

    def pixel_accuracy(self) -> float:
        """Share of labelled pixels predicted right, 0 .. 1."""
        total = self.counts.sum()
        return float(np.trace(self.counts) / total) if total else float("nan")


class SelectionScore:
    """How well a selection finds the pixels the dense model gets wrong."""

    def __init__(self) -> None:
        self._selected = self._wrong = self._found = self._labelled = self._pixels = 0
        self._selected_labelled = 0

    def update(
        self,
        truth: NDArray[np.uint8],
        dense_labels: NDArray[np.uint8],
        selected: NDArray[np.bool_],
    ) -> None:
        """Add one frame; all arrays are [H, W]."""
        valid = truth != IGNORED_LABEL
        wrong = (dense_labels != truth) & valid
        self._pixels += truth.size
        self._labelled += int(valid.sum())
        self._selected += int(selected.sum())
        self._selected_labelled += int((selected & valid).sum())
        self._wrong += int(wrong.sum())
        self._found += int((wrong & selected).sum())

    @property
    def density(self) -> float:
        """Selected share of all pixels, 0 .. 1."""
        return self._selected / max(1, self._pixels)

    @property
    def recall(self) -> float:
        """Share of wrong pixels that were selected, 0 .. 1 (1 when none is wrong)."""
        return self._found / self._wrong if self._wrong else 1.0

    @property
    def precision(self) -> float:
        """Share of the selected labelled pixels that were wrong, 0 .. 1 (1 when none selected)."""
        return self._found / self._selected_labelled if self._selected_labelled else 1.0
