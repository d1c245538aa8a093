# SPDX-License-Identifier: Apache-2.0
"""How many pixels may be refined so that a frame ends in time: learnt from the frames before.

What is left to do once the dense result is there costs `fixed + per_pixel * N` milliseconds for N
refined pixels. Both are fitted to the latest frames, and the plan is made for a slow one of them.
"""

from __future__ import annotations

import collections
import math
from typing import Final

import numpy as np

# Frames remembered: enough for a percentile, few enough to follow a change of load.
_WINDOW: Final = 100
# Of the ratios between what a frame took and what the fit says.
_SLOW_PERCENTILE: Final = 98.0
# Pixels of the first frame, and growth over the largest frame seen: extrapolation is not trusted.
_FIRST: Final = 16384
_GROWTH: Final = 2.0


class PixelCost:
    """Cost of what follows the dense result, as a function of the refined pixels."""

    def __init__(self) -> None:
        self._frames: collections.deque[tuple[int, float]] = collections.deque(maxlen=_WINDOW)
        self._fixed_ms = self._per_pixel_ms = self._slowness = 0.0

    def learn(self, pixels: int, milliseconds: float) -> None:
        """Remember what a frame took from its selection on."""
        self._frames.append((pixels, milliseconds))
        counts, times = np.array(self._frames, np.float64).T
        # Frames of equal size say nothing about the slope; a free frame without pixels does.
        counts, times = np.append(counts, 0.0), np.append(times, 0.0)
        spread = counts - counts.mean()
        slope = float(spread @ times) / max(float(spread @ spread), 1.0)
        self._per_pixel_ms = max(slope, 1e-9)
        self._fixed_ms = max(float(times.mean() - self._per_pixel_ms * counts.mean()), 0.0)
        fitted = np.maximum(self._fixed_ms + self._per_pixel_ms * counts[:-1], 1e-6)
        self._slowness = float(np.percentile(times[:-1] / fitted, _SLOW_PERCENTILE))

    def affordable(self, milliseconds: float) -> int:
        """Pixels that a slow frame refines in that time, at least 0."""
        if not self._frames:
            return _FIRST if milliseconds > 0.0 else 0
        left = milliseconds / max(self._slowness, 1.0) - self._fixed_ms
        largest = max(_FIRST, max(pixels for pixels, _ in self._frames))
        return math.floor(min(max(left / self._per_pixel_ms, 0.0), _GROWTH * largest))

    @property
    def nanoseconds_per_pixel(self) -> float:
        """The fitted cost of one more pixel; 0 before the first frame."""
        return 1e6 * self._per_pixel_ms


class Reserve:
    """Time to keep back for what follows the pipeline: that of a slow one of the latest frames."""

    def __init__(self) -> None:
        self._taken: collections.deque[float] = collections.deque(maxlen=_WINDOW)

    def learn(self, milliseconds: float) -> None:
        """Remember what a frame took."""
        self._taken.append(milliseconds)

    @property
    def milliseconds(self) -> float:
        """0 before the first frame."""
        return float(np.percentile(self._taken, _SLOW_PERCENTILE)) if self._taken else 0.0
