# SPDX-License-Identifier: Apache-2.0
"""Wall-clock time of each stage of a frame."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sparserefine_ros.records import STAGES, StageTimes


class StageClock:
    """`with clock("dense"):` adds the block's time to that stage."""

    def __init__(self) -> None:
        self._milliseconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the block under `stage`, one of `records.STAGES`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._milliseconds[stage] += (time.perf_counter() - start) * 1e3

    def elapsed_ms(self) -> float:
        """Time spent in stages so far."""
        return sum(self._milliseconds.values())

    def times(self) -> StageTimes:
        """What was measured so far."""
        return StageTimes(dict(self._milliseconds))
