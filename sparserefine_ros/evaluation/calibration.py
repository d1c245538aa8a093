# SPDX-License-Identifier: Apache-2.0
"""Whether confidence is honest: accuracy against confidence, and their expected difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.evaluation.counts import (
    OUTCOMES,
    RIGHT,
    WRONG,
    Counts,
    count_pairs,
    outcomes,
    ratio,
)

BINS: Final = 15
_LEVELS: Final = 256
# 255 levels divide evenly by 15 bins, so that no level lies on both sides of a bin's border.
_LEVELS_PER_BIN: Final = (_LEVELS - 1) // BINS

_PIXELS: Final = 0
_RIGHT: Final = 1


@dataclass(frozen=True)
class ReliabilityBin:
    """The labelled pixels of one range of confidence.

    Attributes:
        pixels: how many.
        confidence: their mean confidence, 0 .. 1; NaN without pixels.
        accuracy: share predicted right, 0 .. 1; NaN without pixels.
    """

    pixels: int
    confidence: float
    accuracy: float


class Calibration(Counts):
    """Labelled pixels by confidence, the probability of the predicted class.

    Confidence comes as the pipeline publishes it, rounded to steps of 1/255.

    Attributes:
        counts: int64 [256, 2]; row k counts the pixels of confidence k / 255, columns are labelled
            pixels and those predicted right.
    """

    def __init__(self) -> None:
        super().__init__(_LEVELS, 2)

    def update(
        self,
        truth: NDArray[np.uint8],
        predicted: NDArray[np.uint8],
        confidence: NDArray[np.uint8],
    ) -> None:
        """Add one frame, each [H, W]: class ids, 255 ignored in the truth; 255 * confidence."""
        by_outcome = count_pairs(confidence, outcomes(truth, predicted), OUTCOMES)
        self.counts[:, _PIXELS] += by_outcome[:, RIGHT] + by_outcome[:, WRONG]
        self.counts[:, _RIGHT] += by_outcome[:, RIGHT]

    def bins(self) -> list[ReliabilityBin]:
        """15 ranges of equal width: (0, 1/15], (1/15, 2/15] and so on."""
        level = np.arange(_LEVELS)
        bin_of = np.maximum(0, -(-level // _LEVELS_PER_BIN) - 1)
        result = []
        for index in range(BINS):
            pixels, right = self.counts[bin_of == index].sum(0)
            levels = (level * self.counts[:, _PIXELS])[bin_of == index].sum()
            result.append(
                ReliabilityBin(
                    int(pixels), ratio(levels, pixels * (_LEVELS - 1)), ratio(right, pixels)
                )
            )
        return result

    def expected_error(self) -> float:
        """Expected calibration error, 0 .. 1; NaN without labelled pixels.

        Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 3: the difference of
        accuracy and mean confidence in each bin, averaged with the bins' pixels as weights.
        """
        bins = [part for part in self.bins() if part.pixels]
        pixels = sum(part.pixels for part in bins)
        if not pixels:
            return float("nan")
        gaps = (part.pixels * abs(part.accuracy - part.confidence) for part in bins)
        return sum(gaps) / pixels
