# SPDX-License-Identifier: Apache-2.0
"""Books of one camera: frames, stamps, sizes, and how long it has been slow."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from sensor_msgs.msg import Image

from sparserefine_ros.ros import streams
from sparserefine_ros.ros.cameras import Camera
from sparserefine_ros.ros.reports import WINDOW_FRAMES, FrameHistory, FrameRecord, FrameWindow
from sparserefine_ros.ros.streams import Stream
from sparserefine_ros.ros.worker import FrameCounts


class FakeTime:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(streams, "time", fake)
    return fake


def record(total_ms: float = 10.0, **changes: Any) -> FrameRecord:
    made = FrameRecord((4, 6), {}, total_ms, None, 3, 0.125, budget_hit=False)
    return dataclasses.replace(made, **changes)


def image(second: int) -> Image:
    message = Image()
    message.header.stamp.sec = second
    return message


def test_history_counts_frames_that_were_not_refined() -> None:
    history = FrameHistory()
    for unrefined in ("", "no memory", "no memory"):
        history.add(record(unrefined=unrefined))
    assert history.snapshot().unrefined == 2


def test_history_keeps_a_window_but_counts_all_budget_hits() -> None:
    history = FrameHistory()
    for index in range(WINDOW_FRAMES + 30):
        history.add(record(refined_pixels=index, budget_hit=index % 2 == 0))
    window = history.snapshot()
    assert [each.refined_pixels for each in window.frames] == list(range(30, WINDOW_FRAMES + 30))
    assert window.budget_hits == (WINDOW_FRAMES + 30) // 2


def test_changes_of_size_are_counted() -> None:
    history = FrameHistory()
    changes = [history.add(record(size=size)) for size in ((4, 6), (4, 6), (6, 4), (4, 6))]
    assert changes == [False, False, True, True]
    assert history.snapshot().size_changes == 2
    assert FrameHistory().snapshot() == FrameWindow()


def test_stamps_that_go_back_are_counted_and_missing_ones_are_not() -> None:
    stream = Stream(Camera("", "image"))
    stream.start()
    for second in (5, 6, 6, 2, 0, 3, 1):
        stream.take(image(second), {})
    assert stream.report(FrameCounts(), busy_s=0.0, warn_ms=0.0, subscribed=()).stamps_back == 2
    stream.start()
    stream.take(image(1), {})
    again = stream.report(FrameCounts(), busy_s=0.0, warn_ms=0.0, subscribed=())
    assert (again.stamps_back, again.previous_stamps_back) == (2, 2)


def test_silence_is_measured_from_the_last_frame(clock: FakeTime) -> None:
    stream = Stream(Camera("", "image"))
    assert stream.report(FrameCounts(), busy_s=0.0, warn_ms=0.0, subscribed=()).silent_s is None
    stream.start()
    clock.now_s += 3.0
    assert stream.report(FrameCounts(), busy_s=0.0, warn_ms=0.0, subscribed=()).silent_s == 3.0
    frame = stream.take(image(1), {})
    assert (frame.arrived_s, frame.stream) == (103.0, stream)
    clock.now_s += 0.5
    assert stream.report(FrameCounts(), busy_s=0.0, warn_ms=0.0, subscribed=()).silent_s == 0.5
    stream.stop()
    assert stream.report(FrameCounts(), busy_s=0.0, warn_ms=0.0, subscribed=()).silent_s is None


def test_slowness_is_timed_without_breaks(clock: FakeTime) -> None:
    stream = Stream(Camera("", "image"))
    stream.start()
    slow_s = []
    for processed, total_ms in enumerate((120.0, 130.0, 90.0, 110.0, 150.0), 1):
        stream.history.add(record(total_ms))
        counts = FrameCounts(received=processed, processed=processed)
        slow_s.append(stream.report(counts, busy_s=0.0, warn_ms=100.0, subscribed=()).slow_s)
        clock.now_s += 2.0
    assert slow_s == [0.0, 2.0, 0.0, 0.0, 2.0]
    busy = dataclasses.replace(counts, received=counts.received + 1, in_flight=1)
    assert stream.report(busy, busy_s=0.0, warn_ms=100.0, subscribed=()).slow_s == 4.0
    assert stream.report(busy, busy_s=0.0, warn_ms=0.0, subscribed=()).slow_s == 0.0


def test_an_idle_camera_is_not_slow(clock: FakeTime) -> None:
    stream = Stream(Camera("", "image"))
    stream.start()
    stream.history.add(record(500.0))
    counts = FrameCounts(received=1, processed=1)
    for _ in range(3):
        report = stream.report(counts, busy_s=0.0, warn_ms=100.0, subscribed=())
        clock.now_s += 5.0
    assert report.slow_s == 0.0
