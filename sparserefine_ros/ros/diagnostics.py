# SPDX-License-Identifier: Apache-2.0
"""What the node says about itself on /diagnostics.

`build_status` turns frozen records into level, message and key-value pairs, without ROS;
`status_to_message` wraps the result. Keys are dotted, as in `latency_ms.dense.median`.
"""

from __future__ import annotations

import collections
import enum
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from sparserefine_ros.records import STAGES
from sparserefine_ros.ros.worker import NEWER_FRAME, STOPPED, FrameCounts

UNWATCHED: Final = "unwatched"
WINDOW_FRAMES: Final = 200
NODE_STAGES: Final = ("wait", "decode", *STAGES, "overlay", "publish")

_NONE: Final = "none"


class Level(enum.IntEnum):
    """Levels of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass(frozen=True)
class FrameRecord:
    """Measurements of one processed frame.

    Attributes:
        stage_ms: time of each of `NODE_STAGES`.
        total_ms: from the arrival in the node to the end of publication.
        age_ms: from the stamp to the end of publication; None for a frame without a stamp.
        refined_pixels: number of refined pixels.
        refined_share: share of the frame, 0 .. 1.
        budget_hit: whether the pixel budget removed candidates.
    """

    stage_ms: Mapping[str, float]
    total_ms: float
    age_ms: float | None
    refined_pixels: int
    refined_share: float
    budget_hit: bool


class FrameHistory:
    """The last `WINDOW_FRAMES` frame records; written by the worker, read by the diagnostics."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: collections.deque[FrameRecord] = collections.deque(maxlen=WINDOW_FRAMES)
        self._budget_hits = 0

    def add(self, record: FrameRecord) -> None:
        """Append a frame; the oldest one leaves a full window."""
        with self._lock:
            self._frames.append(record)
            self._budget_hits += record.budget_hit

    def snapshot(self) -> tuple[tuple[FrameRecord, ...], int]:
        """The frames of the window, oldest first, and the budget hits since the start."""
        with self._lock:
            return tuple(self._frames), self._budget_hits


@dataclass(frozen=True)
class Limits:
    """When the level changes; 0 switches a limit off.

    Attributes:
        warn_ms, error_ms: median latency above which the level is WARN, ERROR.
        stale_after_s: time without a picture after which the level is STALE.
    """

    warn_ms: float
    error_ms: float
    stale_after_s: float


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
class NodeReport:
    """State of the node at one instant.

    Attributes:
        phase: lifecycle state in words.
        failure: which transition failed and why; empty when the last one went well.
        model: what is loaded; None while unconfigured.
        image_topic: resolved name of the input.
        silent_s: time since the last picture, or since activation; None while not active.
        counts: what became of the frames, now.
        previous: the same at the previous report.
        period_s: time since the previous report.
        frames: the window of processed frames, oldest first.
        budget_hits: frames since the start at which the pixel budget removed candidates.
        middleware_lost: frames lost between publisher and node; None when that is not known.
        limits: when the level changes.
    """

    phase: str
    failure: str
    model: ModelInfo | None
    image_topic: str
    silent_s: float | None
    counts: FrameCounts
    previous: FrameCounts
    period_s: float
    frames: Sequence[FrameRecord]
    budget_hits: int
    middleware_lost: int | None
    limits: Limits


@dataclass(frozen=True)
class Status:
    """A diagnostic status without ROS types.

    Attributes:
        level: how well the node is.
        message: one line that says why.
        values: key-value pairs in order.
    """

    level: Level
    message: str
    values: tuple[tuple[str, str], ...]


def build_status(report: NodeReport) -> Status:
    """Judge a report and write it out."""
    level, message = _judge(report)
    values = (
        ("state", report.phase),
        *_model_values(report.model),
        *_count_values(report),
        *_refinement_values(report),
        *_latency_values(report.frames),
    )
    return Status(level, message, values)


def status_to_message(
    status: Status, *, name: str, hardware_id: str, stamp: Time
) -> DiagnosticArray:
    """The diagnostic_msgs/DiagnosticArray with this one status."""
    entry = DiagnosticStatus(
        level=bytes([status.level]),
        name=name,
        message=status.message,
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=value) for key, value in status.values],
    )
    message = DiagnosticArray(status=[entry])
    message.header.stamp = stamp
    return message


def _judge(report: NodeReport) -> tuple[Level, str]:
    if report.failure:
        return Level.ERROR, report.failure
    if report.silent_s is None:
        return Level.OK, report.phase
    limits = report.limits
    if 0.0 < limits.stale_after_s < report.silent_s:
        return Level.STALE, f"no picture on {report.image_topic} for {report.silent_s:.1f} s"
    latency_ms = _recent_latency_ms(report)
    if 0.0 < limits.error_ms < latency_ms:
        return Level.ERROR, _latency_text(latency_ms, limits.error_ms)
    rejected = report.counts.rejected_total - report.previous.rejected_total
    if rejected > 0:
        return Level.WARN, f"{rejected} frames rejected, the last: {report.counts.last_rejection}"
    if 0.0 < limits.warn_ms < latency_ms:
        return Level.WARN, _latency_text(latency_ms, limits.warn_ms)
    return Level.OK, "segmenting" if report.frames else "waiting for the first picture"


def _latency_text(latency_ms: float, limit_ms: float) -> str:
    return f"median latency {latency_ms:.1f} ms is above the limit of {limit_ms:g} ms"


def _recent_latency_ms(report: NodeReport) -> float:
    """Median over the frames since the previous report, at least the last one; 0 without any."""
    if not report.frames:
        return 0.0
    new = max(1, report.counts.processed - report.previous.processed)
    return float(np.median([frame.total_ms for frame in report.frames[-new:]]))


def _model_values(model: ModelInfo | None) -> list[tuple[str, str]]:
    if model is None:
        return [("bundle", _NONE)]
    return [
        ("bundle", model.bundle),
        ("bundle_digest", model.digest),
        *((f"backend.{name}", backend) for name, backend in sorted(model.backends.items())),
        ("selector", model.selector),
        ("selector_threshold", f"{model.threshold:.4f}"),
        ("max_refined_pixels", str(model.max_refined_pixels)),
    ]


def _count_values(report: NodeReport) -> list[tuple[str, str]]:
    counts = report.counts
    new = counts.processed - report.previous.processed
    dropped = dict.fromkeys((NEWER_FRAME, UNWATCHED, STOPPED), 0) | dict(counts.dropped)
    lost = report.middleware_lost
    return [
        ("fps", f"{new / report.period_s:.2f}" if report.period_s > 0 else _NONE),
        ("received", str(counts.received)),
        ("processed", str(counts.processed)),
        ("in_flight", str(counts.in_flight)),
        ("dropped", str(counts.dropped_total)),
        *((f"dropped.{reason}", str(number)) for reason, number in dropped.items()),
        ("rejected", str(counts.rejected_total)),
        *(
            (f"rejected.{reason}", str(number))
            for reason, number in sorted(counts.rejected.items())
        ),
        ("last_rejection", counts.last_rejection or _NONE),
        ("lost_in_middleware", "unknown" if lost is None else str(lost)),
    ]


def _refinement_values(report: NodeReport) -> list[tuple[str, str]]:
    values = [("budget_hits", str(report.budget_hits))]
    if report.frames:
        last = report.frames[-1]
        pixels = np.mean([frame.refined_pixels for frame in report.frames])
        share = np.mean([frame.refined_share for frame in report.frames])
        values += [
            ("refined_pixels.last", str(last.refined_pixels)),
            ("refined_pixels.mean", f"{pixels:.1f}"),
            ("refined_share.last", f"{last.refined_share:.5f}"),
            ("refined_share.mean", f"{share:.5f}"),
        ]
    return values


def _latency_values(frames: Sequence[FrameRecord]) -> list[tuple[str, str]]:
    if not frames:
        return []
    series = {
        f"latency_ms.{stage}": [frame.stage_ms.get(stage, 0.0) for frame in frames]
        for stage in NODE_STAGES
    }
    series["latency_ms.total"] = [frame.total_ms for frame in frames]
    ages = [frame.age_ms for frame in frames if frame.age_ms is not None]
    if ages:
        series["age_ms"] = ages
    values = []
    for name, samples in series.items():
        median, p99 = np.percentile(samples, (50, 99))
        values += [
            (f"{name}.last", f"{samples[-1]:.2f}"),
            (f"{name}.median", f"{median:.2f}"),
            (f"{name}.p99", f"{p99:.2f}"),
        ]
    return values
