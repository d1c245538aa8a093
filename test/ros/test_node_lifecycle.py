# SPDX-License-Identifier: Apache-2.0
"""Transitions of the node, good and failed."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros.harness import (
    FakePipeline,
    Peer,
    Stage,
    ask_until_answered,
    exchange,
    make_fake_node,
    make_node,
    picture_message,
    wait_until,
)

from sparserefine_ros.dense.options import Progress, Report
from sparserefine_ros.ros.loading import Model
from sparserefine_ros.ros.node import SegmentNode

SUCCESS = TransitionCallbackReturn.SUCCESS


def test_life_cycle_can_be_cycled(stage: Stage, peer: Peer, picture: np.ndarray) -> None:
    peer.open_camera()
    node = make_fake_node(stage, FakePipeline(), autostart=False)
    threads = threading.active_count()
    client = peer.create_client(ChangeState, "segment/change_state")
    assert client.wait_for_service(30.0)

    def transit(transition: int) -> bool:
        future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
        wait_until(future.done, f"transition {transition}")
        return future.result().success

    refused = ask_until_answered(
        lambda: client.call_async(
            ChangeState.Request(transition=Transition(id=Transition.TRANSITION_DEACTIVATE))
        ),
        "a transition that an unconfigured node refuses",
    )
    assert not refused.success
    for cycle in range(1, 4):
        assert node.count_publishers("segment/labels") == 0
        assert transit(Transition.TRANSITION_CONFIGURE)
        assert node.count_publishers("segment/labels") == 1
        assert node.count_subscribers("image") == 0
        assert transit(Transition.TRANSITION_ACTIVATE)
        peer.watch("labels")
        exchange(peer, node, picture_message(picture), "labels")
        assert transit(Transition.TRANSITION_DEACTIVATE)
        assert node.count_subscribers("image") == 0
        assert node.count_publishers("segment/labels") == 1
        assert threading.active_count() == threads
        assert transit(Transition.TRANSITION_CLEANUP)
        wait_until(lambda: node.count_publishers("segment/labels") == 0, "no publisher")
        assert node.counts.processed == cycle
    assert not transit(Transition.TRANSITION_ACTIVATE), "an unconfigured node cannot be activated"
    assert transit(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)


def test_failed_configuration_leaves_the_node_up_and_can_be_repeated(
    stage: Stage, peer: Peer, tiny_bundle: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    peer.open_camera()
    peer.watch("labels")
    node = make_node(stage, bundle=str(tmp_path / "nowhere"), diagnostics_period_s=0.05)
    wait_until(lambda: peer.diagnostics, "diagnostics")
    wait_until(lambda: peer.diagnostics[-1].level == DiagnosticStatus.ERROR, "ERROR")
    assert "cannot configure: expected a bundle" in peer.diagnostics[-1].message
    assert str(tmp_path / "nowhere") in peer.diagnostics[-1].message
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    (result,) = peer.set_parameters_of_node(bundle=str(tiny_bundle))
    assert result.successful, result.reason
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == SUCCESS
    exchange(peer, node, picture_message(picture), "labels")
    wait_until(lambda: peer.diagnostics[-1].level == DiagnosticStatus.OK, "OK")


def test_unknown_backend_is_refused_at_configure(stage: Stage, tiny_bundle: Path) -> None:
    node = make_node(stage, bundle=str(tiny_bundle), backend="abacus", autostart=False)
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    node.set_parameters([Parameter("backend", value="auto")])
    assert node.trigger_configure() == SUCCESS


def test_unusable_start_values_are_named_until_they_are_put_right(stage: Stage, peer: Peer) -> None:
    node = make_fake_node(
        stage,
        FakePipeline(),
        overlay_opacity=7.0,
        transport="carrier pigeon",
        diagnostics_period_s=0.05,
    )
    wait_until(lambda: peer.diagnostics, "diagnostics")
    wait_until(lambda: peer.diagnostics[-1].level == DiagnosticStatus.ERROR, "ERROR")
    assert "overlay_opacity: expected float 0 .. 1, got 7.0" in peer.diagnostics[-1].message
    assert "raw or compressed, got 'carrier pigeon'" in peer.diagnostics[-1].message
    (result,) = peer.set_parameters_of_node(overlay_opacity=0.7, transport="raw")
    assert result.successful, result.reason
    assert node.trigger_configure() == SUCCESS


def test_a_foreign_error_in_configure_is_told(stage: Stage) -> None:
    def load(*_: object) -> Model:
        raise OSError("disk on fire")

    node = make_node(stage, load, autostart=False)
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE


def test_diagnostics_tell_how_far_an_engine_is_while_it_is_built(stage: Stage, peer: Peer) -> None:
    built = threading.Event()
    fake = FakePipeline()

    def load(_: object, report: Report) -> Model:
        report(Progress("building a toy engine", 0.4))
        assert built.wait(10.0)
        return Model(fake.bundle, fake)

    def last_message() -> str:
        return str(peer.diagnostics[-1].message) if peer.diagnostics else ""

    make_node(stage, load, diagnostics_period_s=0.05)
    wait_until(lambda: last_message() == "configuring: building a toy engine, 40%", "the progress")
    built.set()
    wait_until(lambda: last_message() == "waiting for the first picture", "the active node")


def test_a_process_that_ends_does_not_wait_for_the_model(stage: Stage) -> None:
    stop = threading.Event()
    reported: list[float] = []

    def load(_: object, report: Report) -> Model:
        for step in range(1000):
            reported.append(step / 1000)
            report(Progress("building a toy engine", reported[-1]))
            if step == 3:
                stop.set()
        raise AssertionError("built to the end")

    node = stage.add(
        lambda context: SegmentNode(
            load=load,
            context=context,
            stopping=stop.is_set,
            parameter_overrides=[Parameter("autostart", value=False)],
        )
    )
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert len(reported) == 5


def test_a_failed_activation_leaves_the_node_inactive(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_fake_node(stage, FakePipeline(), autostart=False)
    assert node.trigger_configure() == SUCCESS
    threads = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(node, "create_subscription", lambda *_, **__: 1 / 0)
        assert node.trigger_activate() == TransitionCallbackReturn.FAILURE
    assert threading.active_count() == threads
    assert node.count_publishers("segment/labels") == 1
    assert node.trigger_activate() == SUCCESS
