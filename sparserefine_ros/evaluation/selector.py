# SPDX-License-Identifier: Apache-2.0
"""How well a selection finds the pixels the dense model gets wrong, at one or many thresholds.

Shape legend: H, W full resolution; h, w low resolution; T thresholds.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from sparserefine_ros.data.datasets import IGNORED_LABEL
from sparserefine_ros.evaluation.counts import (
    OUTCOMES,
    RIGHT,
    UNLABELLED,
    WRONG,
    Counts,
    count_pairs,
    outcomes,
)
from sparserefine_ros.selection import expand_map

_LEFT: Final = 0
_SELECTED: Final = 1
_PIXELS: Final = 0
_LABELLED: Final = 1
_WRONG: Final = 2

_LOWEST_NATS: Final = 1e-3
_THRESHOLDS: Final = 60


class SelectionScore(Counts):
    """One selection against the errors of the dense result (SparseRefine, table 5b).

    Attributes:
        counts: int64 [2, 3]; rows are pixels left alone and pixels selected, columns all pixels,
            labelled ones and those labelled otherwise than the dense result.
    """

    def __init__(self) -> None:
        super().__init__(2, 3)

    def update(
        self,
        truth: NDArray[np.uint8],
        dense_labels: NDArray[np.uint8],
        selected: NDArray[np.bool_],
    ) -> None:
        """Add one frame: class ids uint8 [H, W], 255 ignored in the truth; bool [H, W]."""
        labelled = truth != IGNORED_LABEL
        wrong = labelled & (dense_labels != truth)
        for row, part in ((_LEFT, ~selected), (_SELECTED, selected)):
            kinds = (part, part & labelled, part & wrong)
            self.counts[row] += [np.count_nonzero(kind) for kind in kinds]

    @property
    def density(self) -> float:
        """Selected share of all pixels, 0 .. 1."""
        return float(self.counts[_SELECTED, _PIXELS] / max(1, self.counts[:, _PIXELS].sum()))

    @property
    def recall(self) -> float:
        """Share of wrong pixels that were selected, 0 .. 1.

        1 when none is wrong, NaN when none is labelled.
        """
        if not self.counts[:, _LABELLED].any():
            return math.nan
        wrong = self.counts[:, _WRONG].sum()
        return float(self.counts[_SELECTED, _WRONG] / wrong) if wrong else 1.0

    @property
    def precision(self) -> float:
        """Share of the selected labelled pixels that were wrong, 0 .. 1.

        1 when none of them is selected, NaN when none is labelled.
        """
        if not self.counts[:, _LABELLED].any():
            return math.nan
        labelled = self.counts[_SELECTED, _LABELLED]
        return float(self.counts[_SELECTED, _WRONG] / labelled) if labelled else 1.0


class SelectionCurve(Counts):
    """Selections by entropy at many thresholds, without a pixel budget.

    Args:
        classes: C; it sets the thresholds.

    Attributes:
        thresholds: float32 [T], nats, ascending from 0, closer together where they are small;
            numbers of bfloat16.
        counts: int64 [T + 1, 3]; row i counts the pixels whose entropy exceeds exactly i of the
            thresholds, columns as in `SelectionScore`.
    """

    def __init__(self, classes: int) -> None:
        self.thresholds, self._exceeded_by = _thresholds(classes)
        super().__init__(self.thresholds.size + 1, 3)

    def update(
        self, truth: NDArray[np.uint8], dense_labels: NDArray[np.uint8], entropy: torch.Tensor
    ) -> None:
        """Add one frame.

        Args:
            truth: uint8 [H, W], class ids, 255 ignored.
            dense_labels: uint8 [H, W], class ids of the dense result.
            entropy: float32 [h, w], nats, of the dense result.
        """
        low_res_bins = self._exceeded(entropy.numpy())
        bins = expand_map(low_res_bins, (truth.shape[0], truth.shape[1]))
        counts = count_pairs(bins, outcomes(truth, dense_labels), OUTCOMES)[: len(self.counts)]
        known = counts[:, RIGHT] + counts[:, WRONG]
        self.counts += np.stack([counts[:, UNLABELLED] + known, known, counts[:, WRONG]], 1)

    def _exceeded(self, entropy: NDArray[np.float32]) -> NDArray[np.uint8]:
        """How many thresholds lie below; by table, which is ten times faster than by bisection.

        The lower half of a threshold's bits is zero. So what exceeds it has a larger upper half
        once any lower half but zero is carried into that.
        """
        upper_half = (np.maximum(entropy, 0.0).view(np.int32) + 0xFFFF) >> 16
        return self._exceeded_by.take(upper_half, mode="clip")

    def scores(self) -> list[SelectionScore]:
        """The selection of what exceeds each threshold, [T]."""
        result = []
        for index in range(self.thresholds.size):
            score = SelectionScore()
            score.counts[_LEFT] = self.counts[: index + 1].sum(0)
            score.counts[_SELECTED] = self.counts[index + 1 :].sum(0)
            result.append(score)
        return result


@functools.cache
def _thresholds(classes: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The thresholds, and how many of them each float32 exceeds whose lower half is zero."""
    steps = np.geomspace(_LOWEST_NATS, math.log(classes), _THRESHOLDS)
    rounded = torch.from_numpy(np.concatenate([[0.0], steps])).to(torch.bfloat16)
    thresholds: NDArray[np.float32] = rounded.float().numpy()
    upper_halves = np.arange((thresholds.view(np.int32)[-1] >> 16) + 2, dtype=np.int32)
    values = (upper_halves << 16).view(np.float32)
    return thresholds, np.searchsorted(thresholds, values, side="left").astype(np.uint8)
