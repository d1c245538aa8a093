# SPDX-License-Identifier: Apache-2.0
"""Bags played through the real node: counts that add up, loops, stamps as recorded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rclpy
from bags.recording import raw, record
from conftest import smooth_picture
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from ros.harness import Peer, wait_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from sparserefine_ros.errors import BagError, ConfigurationError, SparseRefineError
from sparserefine_ros.ros.player import PlayerNode
from sparserefine_ros.ros.replay import ReplayOptions, replay_bag
from sparserefine_ros.ros.replay_report import ACTIVE, ReplayListener

COUNT = 4


def make_bag(folder: Path) -> Path:
    """Pictures whose red is their number, 20 each second, stamped a second apart."""
    entries = []
    for number in range(COUNT):
        picture = np.full((4, 6, 3), number, np.uint8)
        log_ns = number * 50_000_000
        entries.append(raw(picture, "rgb8", (number + 1) * 10**9 + 7, log_ns=log_ns))
    return record(folder, entries)


@pytest.mark.parametrize("loop", [False, True])
def test_every_picture_is_accounted_for(tiny_bundle: Path, tmp_path: Path, loop: bool) -> None:
    entries = [raw(smooth_picture(30, 44), "rgb8", (k + 1) * 10**8) for k in range(COUNT)]
    bag = record(tmp_path / "bag", entries)
    options = ReplayOptions(rate_hz=5.0, seconds=2.0 if loop else 0.0, loop=loop, clock=loop)
    report = replay_bag(bag, str(tiny_bundle), options)
    assert report.published > COUNT if loop else report.published == COUNT
    lost = report.published - report.received
    assert 0 <= lost <= 1
    done = report.processed + sum(report.dropped.values()) + sum(report.rejected.values())
    assert done + report.in_flight == report.received
    assert 1 <= report.labels <= report.processed
    assert report.latency_ms["p50"] <= report.latency_ms["p99"]
    assert report.latency_ms["p50"] >= 0


def test_parameters_of_the_node(tiny_bundle: Path, tmp_path: Path) -> None:
    entries = [raw(smooth_picture(30, 44), "rgb8", (k + 1) * 10**8) for k in range(COUNT)]
    bag = record(tmp_path / "bag", entries)
    settings = ("latency_budget_ms:=5000.0", "threads:=1")
    report = replay_bag(bag, str(tiny_bundle), ReplayOptions(rate_hz=5.0, parameters=settings))
    assert report.deadline["budget_ms"] == 5000.0
    assert report.deadline["late_share"] == 0.0
    assert 0.0 < report.node_ms["median"] <= report.node_ms["p99"] < 5000.0


def test_a_node_that_cannot_run_is_told_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    bag = record(tmp_path / "bag", [raw(smooth_picture(30, 44), "rgb8", 10**8)])
    start_s = time.monotonic()
    with pytest.raises(SparseRefineError, match="latency_budget_ms: expected float"):
        replay_bag(bag, str(tiny_bundle), ReplayOptions(parameters=("latency_budget_ms:=abc",)))
    assert time.monotonic() - start_s < 40.0


@pytest.mark.parametrize("text", ["latency_budget_ms", "latency_budget=3", "speed:=3", "bundle:=x"])
def test_no_such_parameter(text: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"expected (NAME:=VALUE|a parameter of the node), got"
    ):
        ReplayOptions(parameters=(text,))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., PlayerNode]]:
    """Makes a player, by default of the bag of `make_bag`, that ends with the test."""
    context = Context()
    rclpy.init(context=context)
    players: list[PlayerNode] = []

    def make(**parameters: object) -> PlayerNode:
        given = {"bag": str(tmp_path / "bag"), **parameters}
        overrides = [Parameter(name, value=value) for name, value in given.items()]
        players.append(PlayerNode(context=context, parameter_overrides=overrides))
        return players[-1]

    make_bag(tmp_path / "bag")
    yield make
    for player in players:
        player.close()
        player.destroy_node()
    context.try_shutdown()


def listen(peer: Node) -> tuple[list[Image], list[int]]:
    images: list[Image] = []
    clock: list[int] = []
    peer.create_subscription(Image, "image", images.append, qos_profile_sensor_data)
    peer.create_subscription(
        Clock,
        "/clock",
        lambda message: clock.append(message.clock.sec * 10**9 + message.clock.nanosec),
        qos_profile_sensor_data,
    )
    return images, clock


def test_stamps_are_the_time_of_sending(start: Callable[..., PlayerNode], peer: Peer) -> None:
    images, _ = listen(peer)
    player = start()
    before = player.get_clock().now().nanoseconds
    assert player.play(threading.Event()) == COUNT
    wait_until(lambda: len(images) == COUNT, "all pictures")
    assert [image.data[0] for image in images] == list(range(COUNT))
    stamps = [image.header.stamp.sec * 10**9 + image.header.stamp.nanosec for image in images]
    assert before < stamps[0]
    gaps_ms = np.diff(stamps) / 1e6
    # As recorded: 50 ms apart; a busy machine may be late, but nobody is early by much.
    assert (gaps_ms > 20).all()
    assert images[0].header.frame_id == "front"


def test_a_loop_with_stamps_as_recorded(start: Callable[..., PlayerNode], peer: Peer) -> None:
    images, clock = listen(peer)
    player = start(loop=True, clock=True, seconds=0.8, rate_hz=20.0)
    published = player.play(threading.Event())
    wait_until(lambda: len(images) == published, "all pictures")
    assert published > COUNT
    for number, image in enumerate(images):
        assert (image.header.stamp.sec, image.header.stamp.nanosec) == (number % COUNT + 1, 7)
    assert min(clock) == 10**9 + 7
    assert max(clock) >= COUNT * 10**9
    assert (np.diff(clock) < 0).any()


@pytest.mark.parametrize("rate_hz", [5.0, 40.0])
def test_the_clock_of_another_pace_never_goes_back(
    start: Callable[..., PlayerNode], peer: Peer, rate_hz: float
) -> None:
    _, clock = listen(peer)
    player = start(clock=True, rate_hz=rate_hz)
    assert player.play(threading.Event()) == COUNT
    wait_until(lambda: clock and clock[-1] >= COUNT * 10**9 + 7, "the last stamp")
    assert (np.diff(clock) >= 0).all()
    # Between stamps a second apart it goes on evenly: 200 ms or 25 ms of ten each.
    assert len(set(clock)) > 2 * COUNT


def test_a_set_stop_ends_it(start: Callable[..., PlayerNode]) -> None:
    stop = threading.Event()
    stop.set()
    assert start().play(stop) == 0


def test_unusable_parameters(start: Callable[..., PlayerNode], tmp_path: Path) -> None:
    with pytest.raises(BagError, match="expected a topic /other"):
        start(image_topic="/other")
    with pytest.raises(ConfigurationError, match="rate_hz"):
        start(rate_hz=-1.0)
    with pytest.raises(BagError, match="there is no file or folder"):
        start(bag=str(tmp_path / "none"))


def test_a_loop_of_one_picture_has_a_pace(start: Callable[..., PlayerNode], tmp_path: Path) -> None:
    record(tmp_path / "one", [raw(np.zeros((4, 6, 3), np.uint8), "rgb8", 10**9)])
    player = start(bag=str(tmp_path / "one"), loop=True, seconds=0.6, wait_for_subscribers=0)
    assert 2 <= player.play(threading.Event()) <= 10


def test_the_listener_tells_why_a_node_cannot_be_configured(peer: Peer) -> None:
    status = DiagnosticStatus(level=DiagnosticStatus.ERROR, message="cannot configure: no bundle")
    status.values = [KeyValue(key="state", value="unconfigured")]
    publisher = peer.create_publisher(DiagnosticArray, "/diagnostics", 10)
    listener = ReplayListener(context=peer.context)
    executor = SingleThreadedExecutor(context=peer.context)
    executor.add_node(listener)

    def told() -> bool:
        publisher.publish(DiagnosticArray(status=[status]))
        executor.spin_once(timeout_sec=0.05)
        return bool(listener.status.failure)

    try:
        wait_until(told, "the failure")
        assert listener.status.failure == "cannot configure: no bundle"
    finally:
        executor.shutdown()
        listener.destroy_node()


def test_the_launch_file_waits_for_what_the_listener_logs() -> None:
    launch_file = Path(__file__).parents[2] / "launch" / "replay.launch.py"
    assert f'ACTIVE = b"{ACTIVE}"' in launch_file.read_text(encoding="utf-8")
