# SPDX-License-Identifier: Apache-2.0
"""What the tests of the worker share."""

from __future__ import annotations

import time

from sparserefine_ros.ros.worker import FrameCounts, LatestWorker


def balanced(counts: FrameCounts) -> bool:
    ended = counts.processed + sum(counts.dropped.values()) + sum(counts.rejected.values())
    return counts.received == ended + counts.in_flight


def settle(worker: LatestWorker[int]) -> FrameCounts:
    deadline = time.monotonic() + 10.0
    while worker.counts().in_flight:
        assert time.monotonic() < deadline, "the worker did not come to rest"
        time.sleep(0.001)
    return worker.counts()
