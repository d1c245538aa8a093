# SPDX-License-Identifier: Apache-2.0
"""The node over DDS: life cycle, outputs, parameters, diagnostics."""

from __future__ import annotations

import array
import gc
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy
from conftest import make_tiny_bundle, with_sections
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.context import Context
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros.harness import (
    FakePipeline,
    Peer,
    Stage,
    exchange,
    make_fake_node,
    make_node,
    picture_message,
    wait_until,
)
from sensor_msgs.msg import CompressedImage

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import ModelOutputError
from sparserefine_ros.pipeline import Pipeline
from sparserefine_ros.records import ALL_MAPS, Map
from sparserefine_ros.ros.node import SegmentNode

SUCCESS = TransitionCallbackReturn.SUCCESS
OUTPUTS = ("labels", "entropy", "confidence", "refined", "overlay")


def test_the_deadline_counts_from_the_arrival(
    stage: Stage, peer: Peer, picture: np.ndarray
) -> None:
    peer.open_camera()
    peer.watch("labels")
    pipeline = FakePipeline()
    node = make_fake_node(stage, pipeline)
    message = picture_message(picture)
    exchange(peer, node, message, "labels")
    assert pipeline.deadlines_ms == [None]
    assert peer.set_parameters_of_node(latency_budget_ms=5000.0)[0].successful
    exchange(peer, node, message, "labels")
    # Decoding, and what publication took before, are kept back.
    assert 1000.0 < pipeline.deadlines_ms[-1] < 5000.0
    assert peer.set_parameters_of_node(latency_budget_ms=0.001)[0].successful
    exchange(peer, node, message, "labels")
    assert pipeline.deadlines_ms[-1] < 0.0
    wait_until(
        lambda: latest_values(peer).get("deadline.affordable_pixels.last") == "0",
        "the deadline in the diagnostics",
    )


def latest_values(peer: Peer) -> dict[str, str]:
    """Key-value pairs of a diagnostic sent from now on."""
    known = len(peer.diagnostics)
    wait_until(lambda: len(peer.diagnostics) > known + 1, "diagnostics")
    return {pair.key: pair.value for pair in peer.diagnostics[-1].values}


def test_outputs_equal_the_pipeline_and_keep_the_header(
    stage: Stage, peer: Peer, tiny_bundle: Path, picture: np.ndarray
) -> None:
    peer.open_camera()
    peer.watch(*OUTPUTS)
    node = make_node(stage, bundle=str(tiny_bundle))
    sent = picture_message(picture)
    labels, entropy, confidence, refined, overlay = exchange(peer, node, sent, *OUTPUTS)
    expected = Pipeline(Bundle.open(tiny_bundle))(picture, ALL_MAPS)
    assert expected.refined_pixels > 0
    assert bytes(labels.data) == expected.labels.tobytes()
    assert bytes(entropy.data) == expected.entropy.tobytes()
    assert bytes(confidence.data) == expected.confidence.tobytes()
    assert bytes(refined.data) == np.where(expected.refined, 255, 0).astype(np.uint8).tobytes()
    encodings = [m.encoding for m in (labels, entropy, confidence, refined, overlay)]
    assert encodings == ["mono8", "32FC1", "mono8", "mono8", "rgb8"]
    for message in (labels, entropy, confidence, refined, overlay):
        assert message.header == sent.header
        assert (message.height, message.width) == picture.shape[:2]
    assert bytes(overlay.data) != picture.tobytes()


def test_compressed_transport(stage: Stage, peer: Peer, picture: np.ndarray) -> None:
    peer.open_camera(CompressedImage)
    peer.watch("labels")
    node = make_fake_node(stage, FakePipeline(), transport="compressed")
    png = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    message = CompressedImage(format="png", data=array.array("B", png))
    (labels,) = exchange(peer, node, message, "labels")
    assert bytes(labels.data) == (picture[..., 0] // 100).tobytes()


def test_a_silent_topic_is_explained(stage: Stage, peer: Peer) -> None:
    make_fake_node(
        stage,
        FakePipeline(),
        transport="compressed",
        stale_after_s=0.1,
        diagnostics_period_s=0.05,
    )

    def told(why: str) -> bool:
        return bool(peer.diagnostics) and why in peer.diagnostics[-1].message

    wait_until(lambda: told("nobody publishes it"), "nobody publishes")
    peer.open_camera()
    wait_until(lambda: told("not sensor_msgs/msg/CompressedImage: set transport"), "other type")


@pytest.mark.parametrize("second", [-5, 0, 2**31 - 1])
def test_odd_stamps_do_no_harm(stage: Stage, peer: Peer, picture: np.ndarray, second: int) -> None:
    peer.open_camera()
    peer.watch("labels")
    node = make_fake_node(stage, FakePipeline())
    message = picture_message(picture, second)
    message.header.stamp.nanosec = 0
    (labels,) = exchange(peer, node, message, "labels")
    assert labels.header == message.header
    assert node.counts.rejected == {}


def test_parameters_of_rclpy_can_be_set(stage: Stage, peer: Peer) -> None:
    node = make_fake_node(stage, FakePipeline())
    assert peer.set_parameters_of_node(use_sim_time=True)[0].successful
    assert node.get_parameter("use_sim_time").value is True


def test_only_watched_outputs_are_computed(stage: Stage, peer: Peer, picture: np.ndarray) -> None:
    peer.open_camera()
    pipeline = FakePipeline()
    node = make_fake_node(stage, pipeline)
    wait_until(lambda: peer.connected(node), "the camera's connection")
    peer.send(picture_message(picture))
    wait_until(lambda: node.counts.dropped == {"unwatched": 1}, "an unwatched frame")
    assert pipeline.asked == []
    peer.watch("entropy")
    exchange(peer, node, picture_message(picture), "entropy")
    assert pipeline.asked[-1] == {Map.ENTROPY}
    peer.watch("overlay")
    exchange(peer, node, picture_message(picture), "entropy", "overlay")
    assert pipeline.asked[-1] == {Map.ENTROPY, Map.LABELS, Map.REFINED}
    assert peer.count_publishers("segment/labels") == 1
    assert (node.counts.received, node.counts.processed) == (3, 2)


def test_run_time_changes_good_and_bad(
    stage: Stage, peer: Peer, tiny_bundle: Path, picture: np.ndarray
) -> None:
    peer.open_camera()
    peer.watch("refined")
    node = make_node(stage, bundle=str(tiny_bundle), diagnostics_period_s=0.05)
    (before,) = exchange(peer, node, picture_message(picture), "refined")
    assert peer.set_parameters_of_node(entropy_threshold=0.5, max_refined_pixels=40)[0].successful
    (after,) = exchange(peer, node, picture_message(picture), "refined")
    assert 0 < np.count_nonzero(after.data) <= 40 < np.count_nonzero(before.data)
    values = latest_values(peer)
    assert (values["selector_threshold"], values["max_refined_pixels"]) == ("0.5000", "40")

    for changes, reason in (
        ({"max_refined_pixels": 7, "entropy_threshold": 1.2}, "at most log(3) = 1.0986"),
        ({"entropy_threshold": 0.1, "max_refined_pixels": -5}, "max_refined_pixels out of range"),
        ({"latency_warn_ms": 90.0, "latency_error_ms": 50.0}, "latency_warn_ms = 90.0"),
        ({"overlay_opacity": 0.2, "bundle": "other"}, "bundle: is read when"),
        ({"overlay_opacity": "half"}, "Wrong parameter type"),
    ):
        (result,) = peer.set_parameters_of_node(**changes)
        assert not result.successful
        assert reason in result.reason
    values = latest_values(peer)
    assert (values["selector_threshold"], values["max_refined_pixels"]) == ("0.5000", "40")
    assert node.get_parameter("overlay_opacity").value == 0.5
    assert node.get_parameter("latency_warn_ms").value == 0.0

    assert peer.set_parameters_of_node(entropy_threshold=-1.0, max_refined_pixels=-1)[0].successful
    (restored,) = exchange(peer, node, picture_message(picture), "refined")
    assert restored.data == before.data


def test_an_entropy_threshold_for_another_selector_is_refused(
    stage: Stage, peer: Peer, tmp_path: Path, picture: np.ndarray
) -> None:
    folder = make_tiny_bundle(tmp_path / "tiny")
    with_sections(folder, selector={"kind": "random", "density": 0.5})
    peer.open_camera()
    peer.watch("labels")
    node = make_node(stage, bundle=str(folder))
    (result,) = peer.set_parameters_of_node(entropy_threshold=0.3)
    assert not result.successful
    assert "expected -1.0 for a bundle that selects by random, got 0.3" in result.reason
    exchange(peer, node, picture_message(picture), "labels")
    assert node.counts.processed == 1


def test_errors_of_the_model_reject_the_frame_only(
    stage: Stage, peer: Peer, picture: np.ndarray
) -> None:
    peer.open_camera()
    peer.watch("labels")
    pipeline = FakePipeline()
    node = make_fake_node(stage, pipeline, diagnostics_period_s=0.05)
    wait_until(lambda: peer.connected(node, ("labels",)), "connections")
    for error in (ModelOutputError("NaN in the logits"), ZeroDivisionError("surprise")):
        pipeline.error = error
        rejected = node.counts.rejected_total
        peer.send(picture_message(picture))
        wait_until(lambda n=rejected: node.counts.rejected_total == n + 1, "a rejection")
    assert node.counts.rejected == {"model_output": 1, "internal": 1}
    wait_until(
        lambda: any(status.level == DiagnosticStatus.WARN for status in peer.diagnostics), "WARN"
    )
    pipeline.error = None
    exchange(peer, node, picture_message(picture), "labels")
    assert latest_values(peer)["last_rejection"] == "internal: surprise"


def test_diagnostics_over_dds(stage: Stage, peer: Peer, picture: np.ndarray) -> None:
    peer.open_camera()
    peer.watch("labels")
    node = make_fake_node(stage, FakePipeline(), diagnostics_period_s=0.05, stale_after_s=0.4)
    for _ in range(3):
        message = picture_message(picture)
        message.header.stamp = peer.get_clock().now().to_msg()
        exchange(peer, node, message, "labels")
    values = latest_values(peer)
    assert (values["state"], values["bundle"], values["backend.dense"]) == (
        "active",
        "fake",
        "fake",
    )
    assert (values["received"], values["processed"], values["dropped"]) == ("3", "3", "0")
    assert values["budget_hits"] == "3"
    assert values["refined_pixels.last"] == str(picture.shape[1])
    assert float(values["refined_share.mean"]) == pytest.approx(1 / picture.shape[0], abs=1e-5)
    assert values["latency_ms.dense.median"] == "1.50"
    assert values["lost_in_middleware"] == "0"
    total_ms = float(values["latency_ms.total.median"])
    assert 0.0 < total_ms < float(values["age_ms.median"]) < 1000.0
    status = peer.diagnostics[-1]
    assert (status.name, status.hardware_id) == ("segment: segmentation", "/segment")
    wait_until(lambda: peer.diagnostics[-1].level == DiagnosticStatus.STALE, "STALE")
    assert re.search(r"no frames on /image for \d\.\d s$", peer.diagnostics[-1].message)
    exchange(peer, node, picture_message(picture), "labels")
    wait_until(lambda: peer.diagnostics[-1].level == DiagnosticStatus.OK, "OK again")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_program_ends_cleanly_on_a_signal(
    number: signal.Signals, peer: Peer, tiny_bundle: Path
) -> None:
    command = [sys.executable, "-m", "sparserefine_ros.ros.segment"]
    command += ["--ros-args", "-r", "__ns:=/robot", "-p", f"bundle:={tiny_bundle}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            wait_until(
                lambda: peer.count_subscribers("/robot/image") == 1 or process.poll() is not None,
                "the subscription",
                30.0,
            )
            time.sleep(0.1)
            process.send_signal(number)
            output, _ = process.communicate(timeout=10.0)
        finally:
            process.kill()
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert "segmenting /robot/image" in output


def test_a_destroyed_node_has_no_services(stage: Stage, peer: Peer) -> None:
    """At once: the garbage collector may come too late."""
    context = Context()
    rclpy.init(context=context)
    node = SegmentNode(context=context, parameter_overrides=[Parameter("autostart", value=False)])

    def services() -> set[str]:
        found = {name for name, _ in peer.get_service_names_and_types()}
        return {name for name in found if name.startswith("/segment/")}

    wait_until(lambda: "/segment/change_state" in services(), "the services")
    gc.disable()
    try:
        node.close()
        node.destroy_node()
        wait_until(lambda: services() <= {"/segment/get_type_description"}, "their end")
    finally:
        gc.enable()
        context.try_shutdown()
