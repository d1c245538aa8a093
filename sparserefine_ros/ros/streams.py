# SPDX-License-Identifier: Apache-2.0
"""One camera of a running node: what comes in on its topic, and the books kept about it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sparserefine_ros.ros.cameras import Camera
from sparserefine_ros.ros.losses import LossCounter
from sparserefine_ros.ros.reports import CameraReport, FrameHistory
from sparserefine_ros.ros.worker import FrameCounts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rclpy.subscription import MessageInfo


@dataclass(frozen=True)
class Frame:
    """A message of a camera with its arrival, `time.perf_counter` seconds."""

    message: Image | CompressedImage
    arrived_s: float
    stream: Stream


class Stream:
    """The frames of one camera, for the whole life of the node.

    Used by the executor thread, but for `history`, which the worker thread writes.

    Attributes:
        camera: which one.
        topic: resolved name of its topic, once it was subscribed to.
        history: its processed frames.
    """

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.topic = camera.topic
        self.history = FrameHistory()
        self._losses = LossCounter()
        self._stamps = _StampWatch()
        self._active = False
        self._last_frame_s = 0.0
        self._slow_since_s: float | None = None
        self._reported = FrameCounts()
        self._reported_stamps_back = 0

    def start(self) -> None:
        """The topic is subscribed to from now on."""
        self._active = True
        self._losses.start()
        self._stamps.start()
        self._last_frame_s = time.perf_counter()

    def stop(self) -> None:
        """The topic is no longer subscribed to."""
        self._active = False
        self._slow_since_s = None

    def take(self, message: Image | CompressedImage, info: MessageInfo) -> Frame:
        """Note the arrival of a message."""
        self._last_frame_s = time.perf_counter()
        publisher = info.get("publisher_gid") or {}
        self._losses.note(publisher.get("data", b""), info.get("publication_sequence_number"))
        self._stamps.note(message.header)
        return Frame(message, self._last_frame_s, self)

    def report(
        self, counts: FrameCounts, *, busy_s: float, warn_ms: float, subscribed: Sequence[str]
    ) -> CameraReport:
        """State since the previous report.

        Args:
            counts: what became of its frames.
            busy_s: how long the frame in work has been in work; 0 without one.
            warn_ms: latency from which on the camera counts as slow; 0 for never.
            subscribed: names of the outputs that have a subscriber.
        """
        now_s = time.perf_counter()
        report = CameraReport(
            name=self.camera.name,
            topic=self.topic,
            silent_s=now_s - self._last_frame_s if self._active else None,
            counts=counts,
            previous=self._reported,
            window=self.history.snapshot(),
            busy_s=busy_s,
            slow_s=0.0,
            stamps_back=self._stamps.back,
            previous_stamps_back=self._reported_stamps_back,
            middleware_lost=self._losses.lost,
            subscribed=subscribed,
        )
        if not 0.0 < warn_ms < report.recent_latency_ms:
            self._slow_since_s = None
        elif self._slow_since_s is None:
            self._slow_since_s = now_s
        if self._slow_since_s is not None:
            report = replace(report, slow_s=now_s - self._slow_since_s)
        self._reported, self._reported_stamps_back = counts, self._stamps.back
        return report


class _StampWatch:
    """Counts stamps before the one of the frame before, as in a bag that starts again.

    Attributes:
        back: how many so far.
    """

    def __init__(self) -> None:
        self.back = 0
        self._last_ns: int | None = None

    def start(self) -> None:
        """A new subscription: the next frame has none before it."""
        self._last_ns = None

    def note(self, header: Header) -> None:
        """Take note of a frame; one without a stamp tells nothing."""
        stamp_ns = header.stamp.sec * 10**9 + header.stamp.nanosec
        if stamp_ns == 0:
            return
        self.back += self._last_ns is not None and stamp_ns < self._last_ns
        self._last_ns = stamp_ns
