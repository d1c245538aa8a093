# SPDX-License-Identifier: Apache-2.0
"""Levels and numbers of the diagnostics, from records alone."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus

from sparserefine_ros.records import STAGES
from sparserefine_ros.ros.diagnostics import (
    WINDOW_FRAMES,
    FrameHistory,
    FrameRecord,
    Level,
    Limits,
    ModelInfo,
    NodeReport,
    Status,
    build_status,
    status_to_message,
)
from sparserefine_ros.ros.worker import FrameCounts

OFF = Limits(warn_ms=0.0, error_ms=0.0, stale_after_s=0.0)
MODEL = ModelInfo(
    "tiny", "ab" * 32, {"dense": "onnxruntime CPU", "sparse": "native"}, "entropy", 0.5, 0
)


def frame(total_ms: float = 10.0, **changes: Any) -> FrameRecord:
    stage_ms = {"wait": 1.0, "decode": 2.0, "overlay": 0.5, "publish": 3.0}
    record = FrameRecord(
        stage_ms={**stage_ms, **dict.fromkeys(STAGES, total_ms / 10)},
        total_ms=total_ms,
        age_ms=total_ms + 5.0,
        refined_pixels=100,
        refined_share=0.1,
        budget_hit=False,
    )
    return dataclasses.replace(record, **changes)


def report(**changes: Any) -> NodeReport:
    base = NodeReport(
        phase="active",
        failure="",
        model=MODEL,
        image_topic="/camera/image",
        silent_s=0.1,
        counts=FrameCounts(received=1, processed=1),
        previous=FrameCounts(),
        period_s=1.0,
        frames=(frame(),),
        budget_hits=0,
        middleware_lost=0,
        limits=OFF,
    )
    return dataclasses.replace(base, **changes)


def values(status: Status) -> dict[str, str]:
    pairs = dict(status.values)
    assert len(pairs) == len(status.values), "a key came twice"
    return pairs


def test_a_healthy_node_is_ok() -> None:
    status = build_status(report())
    assert (status.level, status.message) == (Level.OK, "segmenting")
    pairs = values(status)
    assert pairs["state"] == "active"
    assert pairs["bundle"] == "tiny"
    assert pairs["bundle_digest"] == "ab" * 32
    assert pairs["backend.dense"] == "onnxruntime CPU"
    assert pairs["backend.sparse"] == "native"
    assert (pairs["selector"], pairs["selector_threshold"]) == ("entropy", "0.5000")
    assert pairs["last_rejection"] == "none"


def test_levels_are_those_of_the_message() -> None:
    for level in Level:
        assert bytes([level]) == getattr(DiagnosticStatus, level.name)


def test_latency_statistics_against_the_standard_library() -> None:
    totals = [float(10 + (7 * index) % 101) for index in range(101)]
    frames = tuple(frame(total) for total in totals)
    pairs = values(build_status(report(frames=frames)))
    assert float(pairs["latency_ms.total.last"]) == totals[-1]
    assert float(pairs["latency_ms.total.median"]) == statistics.median(totals)
    assert float(pairs["latency_ms.total.p99"]) == sorted(totals)[99]
    assert float(pairs["latency_ms.dense.median"]) == statistics.median(totals) / 10
    assert float(pairs["age_ms.median"]) == statistics.median(totals) + 5.0
    for stage in ("wait", "decode", *STAGES, "overlay", "publish"):
        for figure in ("last", "median", "p99"):
            assert f"latency_ms.{stage}.{figure}" in pairs


def test_refinement_figures() -> None:
    frames = (
        frame(refined_pixels=300, refined_share=0.3),
        frame(refined_pixels=100, refined_share=0.1),
    )
    pairs = values(build_status(report(frames=frames, budget_hits=4)))
    assert (pairs["refined_pixels.last"], pairs["refined_pixels.mean"]) == ("100", "200.0")
    assert (pairs["refined_share.last"], pairs["refined_share.mean"]) == ("0.10000", "0.20000")
    assert pairs["budget_hits"] == "4"


def test_counts_by_reason_and_rate() -> None:
    counts = FrameCounts(
        received=30,
        processed=20,
        in_flight=1,
        dropped={"newer_frame": 4, "unwatched": 2},
        rejected={"step": 2, "encoding": 1},
        last_rejection="step: too small",
    )
    previous = dataclasses.replace(counts, processed=5)
    pairs = values(build_status(report(counts=counts, previous=previous, period_s=2.0)))
    assert (pairs["received"], pairs["processed"], pairs["in_flight"]) == ("30", "20", "1")
    assert (pairs["dropped"], pairs["rejected"]) == ("6", "3")
    assert (pairs["dropped.newer_frame"], pairs["dropped.unwatched"]) == ("4", "2")
    assert pairs["dropped.stopped"] == "0"
    assert (pairs["rejected.step"], pairs["rejected.encoding"]) == ("2", "1")
    assert pairs["last_rejection"] == "step: too small"
    assert pairs["fps"] == "7.50"


def test_a_failed_transition_is_an_error_with_its_reason() -> None:
    reason = "cannot configure: BundleError: none at /nowhere"
    failed = report(phase="unconfigured", failure=reason, model=None, silent_s=None, frames=())
    status = build_status(failed)
    assert (status.level, status.message) == (Level.ERROR, reason)
    assert values(status)["bundle"] == "none"


@pytest.mark.parametrize("phase", ["unconfigured", "inactive", "finalized"])
def test_a_node_at_rest_is_ok(phase: str) -> None:
    status = build_status(report(phase=phase, silent_s=None, frames=()))
    assert (status.level, status.message) == (Level.OK, phase)


def test_silence_is_stale() -> None:
    limits = dataclasses.replace(OFF, stale_after_s=2.0)
    assert build_status(report(silent_s=1.9, limits=limits)).level is Level.OK
    status = build_status(report(silent_s=2.1, limits=limits))
    assert (status.level, status.message) == (Level.STALE, "no picture on /camera/image for 2.1 s")
    assert build_status(report(silent_s=1e6)).level is Level.OK


@pytest.mark.parametrize(
    ("total_ms", "level"),
    [(99.0, Level.OK), (101.0, Level.WARN), (199.0, Level.WARN), (201.0, Level.ERROR)],
)
def test_latency_limits(total_ms: float, level: Level) -> None:
    limits = Limits(warn_ms=100.0, error_ms=200.0, stale_after_s=0.0)
    status = build_status(report(frames=(frame(total_ms),), limits=limits))
    assert status.level is level
    assert ("latency" in status.message) == (level is not Level.OK)


def test_latency_is_judged_over_the_last_period_by_the_median() -> None:
    limits = Limits(warn_ms=100.0, error_ms=0.0, stale_after_s=0.0)
    frames = (*[frame(500.0)] * 50, frame(50.0), frame(900.0), frame(50.0))
    counts, previous = FrameCounts(processed=53), FrameCounts(processed=50)
    recovered = report(frames=frames, counts=counts, previous=previous, limits=limits)
    assert build_status(recovered).level is Level.OK
    idle = dataclasses.replace(recovered, previous=counts, frames=(frame(50.0), frame(900.0)))
    assert build_status(idle).level is Level.WARN


def test_rejections_warn_only_while_they_happen() -> None:
    counts = FrameCounts(received=3, rejected={"step": 3}, last_rejection="step: 5 < 30")
    status = build_status(report(counts=counts))
    assert (status.level, status.message) == (
        Level.WARN,
        "3 frames rejected, the last: step: 5 < 30",
    )
    assert build_status(report(counts=counts, previous=counts)).level is Level.OK


def test_an_active_node_without_a_frame_has_no_latency() -> None:
    limits = Limits(warn_ms=1.0, error_ms=2.0, stale_after_s=5.0)
    status = build_status(report(frames=(), counts=FrameCounts(), limits=limits))
    assert (status.level, status.message) == (Level.OK, "waiting for the first picture")
    assert not [key for key in values(status) if key.startswith(("latency", "refined", "age"))]


def test_frames_without_a_stamp_have_no_age() -> None:
    pairs = values(build_status(report(frames=(frame(age_ms=None),))))
    assert not [key for key in pairs if key.startswith("age")]


def test_unknown_middleware_losses_are_said_to_be_unknown() -> None:
    assert values(build_status(report(middleware_lost=None)))["lost_in_middleware"] == "unknown"
    assert values(build_status(report(middleware_lost=7)))["lost_in_middleware"] == "7"


def test_history_keeps_a_window_but_counts_all_budget_hits() -> None:
    history = FrameHistory()
    for index in range(WINDOW_FRAMES + 30):
        history.add(frame(refined_pixels=index, budget_hit=index % 2 == 0))
    frames, budget_hits = history.snapshot()
    assert [record.refined_pixels for record in frames] == list(range(30, WINDOW_FRAMES + 30))
    assert budget_hits == (WINDOW_FRAMES + 30) // 2


def test_message_carries_the_status() -> None:
    status = Status(Level.STALE, "silent", (("state", "active"), ("fps", "0.00")))
    message = status_to_message(
        status, name="segment: segmentation", hardware_id="/robot/segment", stamp=Time(sec=3)
    )
    assert message.header.stamp.sec == 3
    (entry,) = message.status
    assert (entry.level, entry.message) == (DiagnosticStatus.STALE, "silent")
    assert (entry.name, entry.hardware_id) == ("segment: segmentation", "/robot/segment")
    assert [(pair.key, pair.value) for pair in entry.values] == list(status.values)
