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
    Level,
    Status,
    build_statuses,
    statuses_to_message,
)
from sparserefine_ros.ros.reports import (
    CameraReport,
    FrameRecord,
    FrameWindow,
    Limits,
    ModelInfo,
    NodeReport,
)
from sparserefine_ros.ros.worker import FrameCounts

OFF = Limits(warn_ms=0.0, error_ms=0.0, error_after_s=0.0, stale_after_s=0.0)
MODEL = ModelInfo(
    "tiny", "ab" * 32, {"dense": "onnxruntime CPU", "sparse": "native"}, "entropy", 0.5, 0
)


def frame(total_ms: float = 10.0, **changes: Any) -> FrameRecord:
    stage_ms = {"wait": 1.0, "decode": 2.0, "overlay": 0.5, "publish": 3.0}
    record = FrameRecord(
        size=(20, 50),
        stage_ms={**stage_ms, **dict.fromkeys(STAGES, total_ms / 10)},
        total_ms=total_ms,
        age_ms=total_ms + 5.0,
        refined_pixels=100,
        refined_share=0.1,
        budget_hit=False,
    )
    return dataclasses.replace(record, **changes)


def camera(frames: tuple[FrameRecord, ...] = (frame(),), **changes: Any) -> CameraReport:
    base = CameraReport(
        name="",
        topic="/camera/image",
        silent_s=0.1,
        counts=FrameCounts(received=1, processed=1),
        previous=FrameCounts(),
        window=FrameWindow(frames),
        busy_s=0.0,
        slow_s=0.0,
        stamps_back=0,
        previous_stamps_back=0,
        middleware_lost=0,
        subscribed=("labels",),
    )
    return dataclasses.replace(base, **changes)


def report(*cameras: CameraReport, **changes: Any) -> NodeReport:
    base = NodeReport(
        phase="active",
        failure="",
        model=MODEL,
        period_s=1.0,
        limits=OFF,
        cameras=cameras or (camera(),),
    )
    return dataclasses.replace(base, **changes)


def judge(state: NodeReport) -> Status:
    """The only status of a node with the single camera."""
    (status,) = build_statuses(state)
    assert status.name == "segmentation"
    return status


def values(status: Status) -> dict[str, str]:
    pairs = dict(status.values)
    assert len(pairs) == len(status.values), "a key came twice"
    return pairs


def test_a_healthy_node_is_ok() -> None:
    status = judge(report())
    assert (status.level, status.message) == (Level.OK, "segmenting")
    pairs = values(status)
    assert pairs["state"] == "active"
    assert pairs["bundle"] == "tiny"
    assert pairs["bundle_digest"] == "ab" * 6
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
    pairs = values(judge(report(camera(frames))))
    assert float(pairs["latency_ms.total.last"]) == totals[-1]
    assert float(pairs["latency_ms.total.median"]) == statistics.median(totals)
    assert float(pairs["latency_ms.total.p99"]) == sorted(totals)[99]
    assert float(pairs["latency_ms.dense.median"]) == statistics.median(totals) / 10
    assert float(pairs["age_ms.median"]) == statistics.median(totals) + 5.0
    for stage in ("wait", "decode", *STAGES, "overlay", "publish"):
        for figure in ("last", "median", "p99"):
            assert f"latency_ms.{stage}.{figure}" in pairs


def test_frames_that_memory_did_not_suffice_for() -> None:
    frames = (frame(), frame(unrefined="no memory for 9 pixels"))
    status = judge(report(camera(window=FrameWindow(frames, unrefined=7))))
    assert status.level is Level.WARN
    assert status.message == "1 frames not refined, the last: no memory for 9 pixels"
    assert values(status)["unrefined"] == "7"


def test_refinement_figures() -> None:
    frames = (
        frame(refined_pixels=300, refined_share=0.3, budget_hit=True),
        frame(refined_pixels=100, refined_share=0.1),
    )
    pairs = values(judge(report(camera(window=FrameWindow(frames, budget_hits=4)))))
    assert (pairs["refined_pixels.last"], pairs["refined_pixels.mean"]) == ("100", "200.0")
    assert (pairs["refined_share.last"], pairs["refined_share.mean"]) == ("0.10000", "0.20000")
    assert (pairs["budget_hits"], pairs["budget_hit_share"]) == ("4", "0.500")


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
    pairs = values(judge(report(camera(counts=counts, previous=previous), period_s=2.0)))
    assert (pairs["received"], pairs["processed"], pairs["in_flight"]) == ("30", "20", "1")
    assert (pairs["dropped"], pairs["rejected"]) == ("6", "3")
    assert (pairs["dropped.newer_frame"], pairs["dropped.unwatched"]) == ("4", "2")
    assert pairs["dropped.stopped"] == "0"
    assert (pairs["rejected.step"], pairs["rejected.encoding"]) == ("2", "1")
    assert pairs["last_rejection"] == "step: too small"
    assert pairs["fps"] == "7.50"


def test_a_failed_transition_is_an_error_with_its_reason() -> None:
    reason = "cannot configure: BundleError: none at /nowhere"
    failed = report(phase="unconfigured", failure=reason, model=None, cameras=())
    status = judge(failed)
    assert (status.level, status.message) == (Level.ERROR, reason)
    assert values(status)["bundle"] == "none"


@pytest.mark.parametrize("phase", ["unconfigured", "inactive", "finalized"])
def test_a_node_at_rest_is_ok(phase: str) -> None:
    status = judge(report(camera((), silent_s=None), phase=phase))
    assert (status.level, status.message) == (Level.OK, phase)


def test_silence_is_stale() -> None:
    limits = dataclasses.replace(OFF, stale_after_s=2.0)
    assert judge(report(camera(silent_s=1.9), limits=limits)).level is Level.OK
    status = judge(report(camera(silent_s=2.1), limits=limits))
    assert (status.level, status.message) == (Level.STALE, "no frames on /camera/image for 2.1 s")
    assert values(status)["since_last_frame_s"] == "2.10"
    assert judge(report(camera(silent_s=1e6))).level is Level.OK


@pytest.mark.parametrize(
    ("total_ms", "level"),
    [(99.0, Level.OK), (101.0, Level.WARN), (199.0, Level.WARN), (201.0, Level.ERROR)],
)
def test_latency_limits(total_ms: float, level: Level) -> None:
    limits = dataclasses.replace(OFF, warn_ms=100.0, error_ms=200.0)
    status = judge(report(camera((frame(total_ms),)), limits=limits))
    assert status.level is level
    assert ("latency" in status.message) == (level is not Level.OK)


def test_latency_is_judged_over_the_last_period_by_the_median() -> None:
    limits = dataclasses.replace(OFF, warn_ms=100.0)
    frames = (*[frame(500.0)] * 50, frame(50.0), frame(900.0), frame(50.0))
    counts, previous = FrameCounts(processed=53), FrameCounts(processed=50)
    recovered = camera(frames, counts=counts, previous=previous)
    assert judge(report(recovered, limits=limits)).level is Level.OK
    busy = FrameCounts(received=54, processed=53, in_flight=1)
    waited = camera((frame(50.0), frame(900.0)), counts=busy, previous=busy)
    assert judge(report(waited, limits=limits)).level is Level.WARN


def test_rejections_warn_only_while_they_happen() -> None:
    counts = FrameCounts(received=3, rejected={"step": 3}, last_rejection="step: 5 < 30")
    status = judge(report(camera(counts=counts)))
    assert (status.level, status.message) == (
        Level.WARN,
        "3 frames rejected, the last: step: 5 < 30",
    )
    assert judge(report(camera(counts=counts, previous=counts))).level is Level.OK


def test_an_active_node_without_a_frame_has_no_latency() -> None:
    limits = Limits(warn_ms=1.0, error_ms=2.0, error_after_s=1.0, stale_after_s=5.0)
    status = judge(report(camera((), counts=FrameCounts()), limits=limits))
    assert (status.level, status.message) == (Level.OK, "waiting for the first picture")
    assert not [key for key in values(status) if key.startswith(("latency", "refined", "age"))]


def test_pictures_that_nobody_asks_anything_of_are_told() -> None:
    unwatched = FrameCounts(received=9, dropped={"unwatched": 9})
    status = judge(report(camera((), counts=unwatched, subscribed=())))
    assert status.level is Level.OK
    assert status.message == "pictures arrive, but nobody subscribes to the outputs"
    watched = judge(report(camera((), counts=unwatched, subscribed=("labels",))))
    assert watched.message == "waiting for the first picture"


LIMITS = Limits(warn_ms=20.0, error_ms=300.0, error_after_s=0.0, stale_after_s=2.0)


def test_what_a_camera_at_rest_did_last_is_no_trouble() -> None:
    slow = (frame(500.0, unrefined="memory", affordable_pixels=0, budget_ms=20.0),)
    counts = FrameCounts(received=8, processed=1, dropped={"unwatched": 7})
    limits = dataclasses.replace(LIMITS, budget_ms=20.0)
    resting = judge(report(camera(slow, counts=counts, previous=counts), limits=limits))
    assert resting.level is Level.OK
    # While the next one is awaited, and took no less so far, the last one still counts.
    busy = dataclasses.replace(counts, received=9, in_flight=1)
    waited = camera(slow, counts=busy, previous=counts, busy_s=0.01)
    assert judge(report(waited, limits=limits)).level is Level.ERROR


def test_a_model_that_does_not_come_back_is_told() -> None:
    counts = FrameCounts(received=2, processed=1, in_flight=1)
    hung = camera((frame(10.0),), counts=counts, previous=counts, busy_s=0.0)

    def told(busy_s: float, limits: Limits) -> tuple[Level, str]:
        status = judge(report(dataclasses.replace(hung, busy_s=busy_s), limits=limits))
        return status.level, status.message

    assert told(0.01, LIMITS) == (Level.OK, "segmenting")
    assert told(0.1, LIMITS)[0] is Level.WARN
    level, message = told(5.0, LIMITS)
    assert (level, "5000.0 ms" in message) == (Level.ERROR, True)
    # Without limits of the latency there is still that of silence.
    silent = dataclasses.replace(OFF, stale_after_s=2.0)
    assert told(1.9, silent) == (Level.OK, "segmenting")
    assert told(2.1, silent) == (Level.WARN, "the current frame has been in process for 2.1 s")
    assert told(60.0, OFF) == (Level.OK, "segmenting")


DEADLINE = Limits(warn_ms=0.0, error_ms=0.0, error_after_s=0.0, stale_after_s=0.0, budget_ms=20.0)


def test_the_deadline_is_told_while_it_is_set() -> None:
    frames = (
        frame(total_ms=15.0, affordable_pixels=100, budget_ms=20.0),
        frame(total_ms=25.0, affordable_pixels=300, budget_ms=20.0),
        frame(total_ms=19.0, affordable_pixels=None),
        frame(total_ms=90.0, affordable_pixels=9999, budget_ms=100.0),
        frame(total_ms=20.0, affordable_pixels=700, budget_ms=20.0),
    )
    status = judge(report(camera(frames), limits=DEADLINE))
    pairs = values(status)
    assert status.level is Level.OK
    assert pairs["deadline.budget_ms"] == "20"
    assert pairs["deadline.affordable_pixels.last"] == "700"
    assert pairs["deadline.affordable_pixels.median"] == "300"
    assert pairs["deadline.late_share"] == "0.333"
    assert not [key for key in values(judge(report(camera(frames)))) if "deadline" in key]


def test_a_deadline_that_the_dense_stage_alone_misses_is_a_warning() -> None:
    hopeless = frame(total_ms=30.0, affordable_pixels=0, budget_ms=20.0)
    status = judge(report(camera((hopeless,) * 3), limits=DEADLINE))
    assert status.level is Level.WARN
    assert "nothing is refined" in status.message
    assert "a frame takes 30.0 ms without it, latency_budget_ms is 20" in status.message
    before = judge(report(camera((frame(affordable_pixels=None),)), limits=DEADLINE))
    assert before.level is Level.OK


def test_frames_without_a_stamp_have_no_age() -> None:
    pairs = values(judge(report(camera((frame(age_ms=None),)))))
    assert not [key for key in pairs if key.startswith("age")]


def test_unknown_middleware_losses_are_said_to_be_unknown() -> None:
    assert values(judge(report(camera(middleware_lost=None))))["lost_in_middleware"] == "unknown"
    assert values(judge(report(camera(middleware_lost=7))))["lost_in_middleware"] == "7"


def test_latency_over_the_limit_for_long_is_an_error() -> None:
    limits = dataclasses.replace(OFF, warn_ms=100.0, error_after_s=10.0)
    for slow_s, level in ((9.9, Level.WARN), (10.0, Level.ERROR)):
        status = judge(report(camera((frame(150.0),), slow_s=slow_s), limits=limits))
        assert status.level is level
    assert status.message == "median latency 150.0 ms is above the limit of 100 ms, for 10 s now"
    never = dataclasses.replace(limits, error_after_s=0.0)
    slow = camera((frame(150.0),), slow_s=1e6)
    assert judge(report(slow, limits=never)).level is Level.WARN


def test_stamps_that_went_back_warn_once() -> None:
    status = judge(report(camera(stamps_back=3, previous_stamps_back=2)))
    assert status.level is Level.WARN
    assert status.message == "the stamps on /camera/image went back in time"
    assert values(status)["stamps_back"] == "3"
    assert judge(report(camera(stamps_back=3, previous_stamps_back=3))).level is Level.OK


def test_what_comes_and_who_listens() -> None:
    window = FrameWindow((frame(), frame(size=(10, 30))), size_changes=1)
    pairs = values(judge(report(camera(window=window, subscribed=("overlay", "labels")))))
    assert (pairs["topic"], pairs["size"]) == ("/camera/image", "30 x 10")
    assert (pairs["size_changes"], pairs["subscribed"]) == ("1", "labels, overlay")
    assert values(judge(report(camera((), subscribed=()))))["subscribed"] == "none"


def front_and_rear(rear: CameraReport, limits: Limits = OFF) -> tuple[Status, Status, Status]:
    front = camera(
        name="front", counts=FrameCounts(received=9, processed=6, dropped={"stopped": 3})
    )
    both = report(front, dataclasses.replace(rear, name="rear", topic="/rear/image"), limits=limits)
    node, first, second = build_statuses(both)
    names = [status.name for status in (node, first, second)]
    assert names == ["segmentation", "camera front", "camera rear"]
    return node, first, second


def test_several_cameras_have_a_status_each() -> None:
    rear = camera(counts=FrameCounts(received=5, processed=4, rejected={"step": 1}))
    rear = dataclasses.replace(rear, previous=rear.counts)
    node, front_status, rear_status = front_and_rear(rear)
    assert (node.level, node.message) == (Level.OK, "segmenting 2 cameras")
    totals = values(node)
    assert (totals["cameras"], totals["bundle"]) == ("front, rear", "tiny")
    assert (totals["received"], totals["processed"]) == ("14", "10")
    assert (totals["dropped.stopped"], totals["rejected.step"]) == ("3", "1")
    assert "latency_ms.total.median" not in totals
    assert values(front_status)["received"] == "9"
    assert values(rear_status)["topic"] == "/rear/image"
    assert "latency_ms.total.median" in values(rear_status)


def test_one_silent_camera_of_two_is_a_warning_for_the_node() -> None:
    limits = dataclasses.replace(OFF, stale_after_s=2.0)
    node, front, rear = front_and_rear(camera(silent_s=3.0), limits)
    assert (front.level, rear.level) == (Level.OK, Level.STALE)
    assert (node.level, node.message) == (Level.WARN, "rear: no frames on /rear/image for 3.0 s")
    silent = camera(name="front", silent_s=3.0), camera(name="rear", silent_s=4.0)
    node, *_ = build_statuses(report(*silent, limits=limits))
    assert (node.level, node.message) == (Level.STALE, "no frames from any camera")


def test_the_node_is_as_bad_as_its_worst_camera() -> None:
    limits = dataclasses.replace(OFF, error_ms=100.0)
    node, front, rear = front_and_rear(camera((frame(101.0),)), limits)
    assert (node.level, front.level, rear.level) == (Level.ERROR, Level.OK, Level.ERROR)
    assert node.message.startswith("rear: median latency 101.0 ms")


def test_message_carries_the_statuses() -> None:
    statuses = [
        Status("segmentation", Level.STALE, "silent", (("state", "active"), ("fps", "0.00"))),
        Status("camera front", Level.OK, "segmenting", ()),
    ]
    message = statuses_to_message(
        statuses, node_name="segment", hardware_id="/robot/segment", stamp=Time(sec=3)
    )
    assert message.header.stamp.sec == 3
    entry, front = message.status
    assert (entry.level, entry.message) == (DiagnosticStatus.STALE, "silent")
    assert (entry.name, entry.hardware_id) == ("segment: segmentation", "/robot/segment")
    assert [(pair.key, pair.value) for pair in entry.values] == list(statuses[0].values)
    assert (front.name, front.level) == ("segment: camera front", DiagnosticStatus.OK)
