# SPDX-License-Identifier: Apache-2.0
"""Whether the next frame of a camera is worth waiting for.

A node slower than its camera finds a frame in the mailbox that is up to one camera period old. If
the next one is due in a moment, taking that one instead makes the result younger by most of a
period and costs only the moment. And a frame that is due in a moment may join those of other
cameras in one batch.
"""

from __future__ import annotations

import collections
import math
import statistics
from typing import Final

# A frame older than this share of the camera's period is exchanged for the next one ...
_OLD_SHARE: Final = 0.25
# ... if that is due within both of these: a share of the last processing time, and a limit.
_WORTH_SHARE: Final = 0.25
_WORTH_S: Final = 0.030
# Frames of cameras that are triggered together arrive within this of each other.
_COMPANY_S: Final = 0.010
# A frame counts as missing when it is late by this share of the camera's period, or by more than it
# is worth waiting for.
_LATE_SHARE: Final = 0.5
# Intervals between arrivals of which the period is the median: single ones are uneven.
_INTERVALS: Final = 5


class Rhythm:
    """Arrivals of one camera and the time one of its frames takes. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._period_s: float | None = None
        self._intervals_s: collections.deque[float] = collections.deque(maxlen=_INTERVALS)
        self._processing_s = 0.0

    def arrived(self, now_s: float) -> None:
        """A frame has come."""
        if self._last_s is not None:
            self._intervals_s.append(now_s - self._last_s)
            self._period_s = statistics.median(self._intervals_s)
        self._last_s = now_s

    def processed(self, duration_s: float) -> None:
        """A frame has been processed."""
        self._processing_s = duration_s

    def forget(self) -> None:
        """The camera's frames are no longer received: the next arrival tells no period."""
        self._last_s = self._period_s = None
        self._intervals_s.clear()

    def due_s(self, now_s: float) -> float:
        """When the next frame is due, from now; infinite while the period is not known."""
        if self._last_s is None or self._period_s is None:
            return math.inf
        return self._last_s + self._period_s - now_s

    def patience_s(self, now_s: float) -> float:
        """How long to wait for the next frame before taking the present one; 0: not at all."""
        if self._last_s is None or self._period_s is None:
            return 0.0
        if now_s - self._last_s < _OLD_SHARE * self._period_s:
            return 0.0
        due_s = self.due_s(now_s)
        worth_s = min(_WORTH_S, _WORTH_SHARE * self._processing_s)
        missing_s = due_s + min(worth_s, _LATE_SHARE * self._period_s)
        return max(0.0, missing_s) if due_s <= worth_s else 0.0

    def company_s(self, now_s: float) -> float:
        """How long to wait for the next frame, to join those of other cameras; 0: not at all."""
        due_s = self.due_s(now_s)
        worth_s = min(_COMPANY_S, _WORTH_SHARE * self._processing_s)
        return due_s + worth_s if -worth_s < due_s <= worth_s else 0.0
