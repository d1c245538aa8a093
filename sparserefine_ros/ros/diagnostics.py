# SPDX-License-Identifier: Apache-2.0
"""What the node says about itself on /diagnostics.

`build_statuses` turns frozen records into levels, messages and key-value pairs, without ROS;
`statuses_to_message` wraps the result. Keys are dotted, as in `latency_ms.dense.median`.

A node with the single camera on `image` has one status. With several cameras there is one for the
node, whose level sums up the cameras, and one for each of them.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from sparserefine_ros.records import STAGES
from sparserefine_ros.ros.reports import (
    UNWATCHED,
    CameraReport,
    FrameRecord,
    Limits,
    ModelInfo,
    NodeReport,
)
from sparserefine_ros.ros.worker import NEWER_FRAME, STOPPED, FrameCounts

NODE_STAGES: Final = ("wait", "decode", *STAGES, "overlay", "publish")
DIGEST_DIGITS: Final = 12

_NONE: Final = "none"
_WHOLE: Final = "segmentation"


class Level(enum.IntEnum):
    """Levels of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass(frozen=True)
class Status:
    """A diagnostic status without ROS types.

    Attributes:
        name: what it is about: "segmentation" for the node, "camera NAME" for one of several.
        level: how well that is.
        message: one line that says why.
        values: key-value pairs in order.
    """

    name: str
    level: Level
    message: str
    values: tuple[tuple[str, str], ...]


def build_statuses(report: NodeReport) -> tuple[Status, ...]:
    """Judge a report and write it out, the node's status first."""
    cameras = report.cameras
    judged = [_judge_camera(camera, report.limits) for camera in cameras]
    level, message = _judge_node(report, judged)
    values = [("state", report.phase), *_model_values(report.model)]
    if len(cameras) == 1 and not cameras[0].name:
        values += _camera_values(cameras[0], report.period_s, report.limits)
        return (Status(_WHOLE, level, message, tuple(values)),)
    if not cameras:
        return (Status(_WHOLE, level, message, tuple(values)),)
    total = FrameCounts.total(camera.counts for camera in cameras)
    before = FrameCounts.total(camera.previous for camera in cameras)
    values += [
        ("cameras", ", ".join(camera.name for camera in cameras)),
        *_count_values(total, before, report.period_s),
    ]
    return (
        Status(_WHOLE, level, message, tuple(values)),
        *(
            Status(
                f"camera {camera.name}",
                *verdict,
                _camera_values(camera, report.period_s, report.limits),
            )
            for camera, verdict in zip(cameras, judged, strict=True)
        ),
    )


def statuses_to_message(
    statuses: Sequence[Status], *, node_name: str, hardware_id: str, stamp: Time
) -> DiagnosticArray:
    """The diagnostic_msgs/DiagnosticArray with these statuses, named "NODE: STATUS"."""
    message = DiagnosticArray(
        status=[
            DiagnosticStatus(
                level=bytes([status.level]),
                name=f"{node_name}: {status.name}",
                message=status.message,
                hardware_id=hardware_id,
                values=[KeyValue(key=key, value=value) for key, value in status.values],
            )
            for status in statuses
        ]
    )
    message.header.stamp = stamp
    return message


def _judge_node(report: NodeReport, judged: Sequence[tuple[Level, str]]) -> tuple[Level, str]:
    if report.failure:
        return Level.ERROR, report.failure
    if all(camera.silent_s is None for camera in report.cameras):
        return Level.OK, report.phase
    if len(judged) == 1:
        return judged[0]
    levels = [level for level, _ in judged]
    if all(level is Level.STALE for level in levels):
        return Level.STALE, "no frames from any camera"
    # One silent camera among others leaves the node at work: no more than a warning.
    worst = max(Level.WARN if level is Level.STALE else level for level in levels)
    troubles = [
        f"{camera.name}: {text}"
        for camera, (level, text) in zip(report.cameras, judged, strict=True)
        if level is not Level.OK
    ]
    return worst, "; ".join(troubles) or f"segmenting {len(judged)} cameras"


def _judge_camera(camera: CameraReport, limits: Limits) -> tuple[Level, str]:
    if camera.silent_s is None:
        return Level.OK, "not subscribed"
    if 0.0 < limits.stale_after_s < camera.silent_s:
        why = f": {camera.silence}" if camera.silence else ""
        return Level.STALE, f"no frames on {camera.topic} for {camera.silent_s:.1f} s{why}"
    latency_ms = camera.recent_latency_ms
    if 0.0 < limits.error_ms < latency_ms:
        return Level.ERROR, _latency_text(latency_ms, limits.error_ms)
    slow = 0.0 < limits.warn_ms < latency_ms
    if slow and 0.0 < limits.error_after_s <= camera.slow_s:
        text = _latency_text(latency_ms, limits.warn_ms)
        return Level.ERROR, f"{text}, for {camera.slow_s:.0f} s now"
    rejected = camera.counts.rejected_total - camera.previous.rejected_total
    if rejected > 0:
        return Level.WARN, f"{rejected} frames rejected, the last: {camera.counts.last_rejection}"
    unrefined = [frame.unrefined for frame in camera.recent_frames if frame.unrefined]
    if unrefined:
        return Level.WARN, f"{len(unrefined)} frames not refined, the last: {unrefined[-1]}"
    if slow:
        return Level.WARN, _latency_text(latency_ms, limits.warn_ms)
    if 0.0 < limits.stale_after_s < camera.busy_s:
        return Level.WARN, f"the current frame has been in process for {camera.busy_s:.1f} s"
    afforded = _afford(camera.recent_frames, limits)
    if limits.budget_ms and afforded and not any(afforded):
        return Level.WARN, (
            f"nothing is refined: a frame takes {latency_ms:.1f} ms without it, "
            f"latency_budget_ms is {limits.budget_ms:g}"
        )
    if camera.stamps_back > camera.previous_stamps_back:
        return Level.WARN, f"the stamps on {camera.topic} went back in time"
    return Level.OK, _calm_text(camera)


def _calm_text(camera: CameraReport) -> str:
    """What a camera is about that gives no cause for concern."""
    if camera.counts.received and not camera.subscribed:
        return "pictures arrive, but nobody subscribes to the outputs"
    return "segmenting" if camera.frames else "waiting for the first picture"


def _afford(frames: Sequence[FrameRecord], limits: Limits) -> list[int]:
    """Pixels that the deadline allowed, for the frames that had the present one."""
    return [
        frame.affordable_pixels
        for frame in frames
        if frame.affordable_pixels is not None and frame.budget_ms == limits.budget_ms
    ]


def _latency_text(latency_ms: float, limit_ms: float) -> str:
    return f"median latency {latency_ms:.1f} ms is above the limit of {limit_ms:g} ms"


def _model_values(model: ModelInfo | None) -> list[tuple[str, str]]:
    if model is None:
        return [("bundle", _NONE)]
    return [
        ("bundle", model.bundle),
        ("bundle_digest", model.digest[:DIGEST_DIGITS]),
        *((f"backend.{name}", backend) for name, backend in sorted(model.backends.items())),
        ("selector", model.selector),
        ("selector_threshold", f"{model.threshold:.4f}"),
        ("max_refined_pixels", str(model.max_refined_pixels)),
    ]


def _camera_values(
    camera: CameraReport, period_s: float, limits: Limits
) -> tuple[tuple[str, str], ...]:
    lost, silent_s = camera.middleware_lost, camera.silent_s
    height, width = camera.frames[-1].size if camera.frames else (0, 0)
    return (
        ("topic", camera.topic),
        ("size", f"{width} x {height}" if camera.frames else _NONE),
        ("size_changes", str(camera.window.size_changes)),
        ("subscribed", ", ".join(sorted(camera.subscribed)) or _NONE),
        ("since_last_frame_s", _NONE if silent_s is None else f"{silent_s:.2f}"),
        ("stamps_back", str(camera.stamps_back)),
        *_count_values(camera.counts, camera.previous, period_s),
        ("lost_in_middleware", "unknown" if lost is None else str(lost)),
        *_refinement_values(camera),
        *_deadline_values(camera.frames, limits),
        *_latency_values(camera.frames),
    )


def _count_values(
    counts: FrameCounts, previous: FrameCounts, period_s: float
) -> list[tuple[str, str]]:
    new = counts.processed - previous.processed
    dropped = dict.fromkeys((NEWER_FRAME, UNWATCHED, STOPPED), 0) | dict(counts.dropped)
    return [
        ("fps", f"{new / period_s:.2f}" if period_s > 0 else _NONE),
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
    ]


def _refinement_values(camera: CameraReport) -> list[tuple[str, str]]:
    values = [
        ("budget_hits", str(camera.window.budget_hits)),
        ("unrefined", str(camera.window.unrefined)),
    ]
    if camera.frames:
        frames, last = camera.frames, camera.frames[-1]
        hit_share = np.mean([frame.budget_hit for frame in frames])
        pixels = np.mean([frame.refined_pixels for frame in frames])
        share = np.mean([frame.refined_share for frame in frames])
        values += [
            ("budget_hit_share", f"{hit_share:.3f}"),
            ("refined_pixels.last", str(last.refined_pixels)),
            ("refined_pixels.mean", f"{pixels:.1f}"),
            ("refined_share.last", f"{last.refined_share:.5f}"),
            ("refined_share.mean", f"{share:.5f}"),
            ("batch.last", str(last.batch)),
            ("batch.mean", f"{np.mean([frame.batch for frame in frames]):.2f}"),
        ]
    return values


def _deadline_values(frames: Sequence[FrameRecord], limits: Limits) -> list[tuple[str, str]]:
    """Nothing without a deadline; else how often the last frames that had it met it."""
    afforded = _afford(frames, limits)
    if not limits.budget_ms or not afforded:
        return []
    timed = [frame.total_ms for frame in frames if frame.budget_ms == limits.budget_ms]
    late = np.mean(np.array(timed) > limits.budget_ms)
    return [
        ("deadline.budget_ms", f"{limits.budget_ms:g}"),
        ("deadline.affordable_pixels.last", str(afforded[-1])),
        ("deadline.affordable_pixels.median", f"{np.median(afforded):.0f}"),
        ("deadline.late_share", f"{late:.3f}"),
    ]


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
