# SPDX-License-Identifier: Apache-2.0
"""Records of what a node and its cameras have done, from which the diagnostics are written."""

from __future__ import annotations

import collections
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sparserefine_ros.ros.worker import FrameCounts

UNWATCHED: Final = "unwatched"
WINDOW_FRAMES: Final = 200


@dataclass(frozen=True)
class FrameRecord:
    """Measurements of one processed frame.

    Attributes:
        size: (H, W).
        stage_ms: time of each stage of the node, see `diagnostics.NODE_STAGES`.
        total_ms: from the arrival in the node to the end of publication.
        age_ms: from the stamp to the end of publication; None for a frame without a stamp.
        refined_pixels: number of refined pixels.
        refined_share: share of the frame, 0 .. 1.
        budget_hit: whether the pixel budget, or the deadline, removed candidates.
        affordable_pixels: how many the deadline allowed; None without one.
        unrefined: why the memory of the GPU did not suffice to refine it; empty where it did.
        batch: frames that the dense model saw together with this one, itself included.
        budget_ms: the deadline it had; 0 for none.
    """

    size: tuple[int, int]
    stage_ms: Mapping[str, float]
    total_ms: float
    age_ms: float | None
    refined_pixels: int
    refined_share: float
    budget_hit: bool
    affordable_pixels: int | None = None
    unrefined: str = ""
    batch: int = 1
    budget_ms: float = 0.0


@dataclass(frozen=True)
class FrameWindow:
    """The last frames of a camera.

    Attributes:
        frames: oldest first, at most WINDOW_FRAMES.
        budget_hits: frames since the start at which the pixel budget removed candidates.
        unrefined: frames since the start whose refinement found too little memory.
        size_changes: how often since the start a frame had another size than the one before.
    """

    frames: tuple[FrameRecord, ...] = ()
    budget_hits: int = 0
    unrefined: int = 0
    size_changes: int = 0


class FrameHistory:
    """Collects the frames of a camera; written by the worker, read by the diagnostics."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: collections.deque[FrameRecord] = collections.deque(maxlen=WINDOW_FRAMES)
        self._budget_hits = 0
        self._unrefined = 0
        self._size_changes = 0

    def add(self, record: FrameRecord) -> bool:
        """Append a frame; the oldest one leaves a full window.

        Returns:
            whether the frame has another size than the one before.
        """
        with self._lock:
            changed = bool(self._frames) and self._frames[-1].size != record.size
            self._frames.append(record)
            self._budget_hits += record.budget_hit
            self._unrefined += bool(record.unrefined)
            self._size_changes += changed
            return changed

    def snapshot(self) -> FrameWindow:
        """The frames and counts now."""
        with self._lock:
            return FrameWindow(
                tuple(self._frames), self._budget_hits, self._unrefined, self._size_changes
            )


@dataclass(frozen=True)
class Limits:
    """When the level changes; 0 switches a limit off.

    Attributes:
        warn_ms, error_ms: median latency above which the level is WARN, ERROR.
        error_after_s: time above warn_ms after which the level is ERROR.
        stale_after_s: time without a frame after which the level is STALE.
        budget_ms: deadline of a frame.
    """

    warn_ms: float
    error_ms: float
    error_after_s: float
    stale_after_s: float
    budget_ms: float = 0.0


@dataclass(frozen=True)
class ModelInfo:
    """What is loaded.

    Attributes:
        bundle: name of the bundle.
        digest: SHA-256 of its bundle.yaml, hex.
        backends: name of the engine of each model.
        selector: what decides which pixels are refined.
        threshold: of the selector; in nats for entropy.
        max_refined_pixels: pixel budget; 0 for no limit.
    """

    bundle: str
    digest: str
    backends: Mapping[str, str]
    selector: str
    threshold: float
    max_refined_pixels: int


@dataclass(frozen=True)
class CameraReport:
    """State of one camera at one instant.

    Attributes:
        name: of the camera; empty for the only one.
        topic: resolved name of its topic.
        silent_s: time since its last frame, or since activation; None while not active.
        counts: what became of its frames, now.
        previous: the same at the previous report.
        window: its last processed frames.
        busy_s: how long the frame in work has been in work; 0 without one.
        slow_s: how long its latency has been above the limit for WARN, without a break.
        stamps_back: how often a stamp was before the one of the frame before.
        previous_stamps_back: the same at the previous report.
        middleware_lost: frames lost between publisher and node; None when that is not known.
        subscribed: names of the outputs that have a subscriber.
        silence: why no frames may be coming, in words; empty where nothing is known.
    """

    name: str
    topic: str
    silent_s: float | None
    counts: FrameCounts
    previous: FrameCounts
    window: FrameWindow
    busy_s: float
    slow_s: float
    stamps_back: int
    previous_stamps_back: int
    middleware_lost: int | None
    subscribed: Sequence[str]
    silence: str = ""

    @property
    def frames(self) -> tuple[FrameRecord, ...]:
        """The last processed frames, oldest first."""
        return self.window.frames

    @property
    def recent_latency_ms(self) -> float:
        """Median over `recent_frames`, or what the frame in work has taken already; 0 for none."""
        done = [frame.total_ms for frame in self.recent_frames]
        return max(float(np.median(done)) if done else 0.0, 1e3 * self.busy_s)

    @property
    def recent_frames(self) -> tuple[FrameRecord, ...]:
        """Those since the previous report; while the next is awaited, at least the last one."""
        new = self.counts.processed - self.previous.processed
        if not new and not self.counts.in_flight:
            return ()
        return self.frames[-max(1, new) :]


@dataclass(frozen=True)
class NodeReport:
    """State of the node at one instant.

    Attributes:
        phase: lifecycle state in words.
        failure: which transition failed and why; empty when the last one went well.
        model: what is loaded; None while unconfigured.
        period_s: time since the previous report.
        limits: when the level changes.
        cameras: those it serves, or served last; empty before it was first configured.
    """

    phase: str
    failure: str
    model: ModelInfo | None
    period_s: float
    limits: Limits
    cameras: Sequence[CameraReport]
