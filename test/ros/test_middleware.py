# SPDX-License-Identifier: Apache-2.0
"""What configure_middleware sets, and that large best-effort images then arrive.

Run as a program, this file is one end of the transport test:
`test_middleware.py send|receive COUNT default|configured`.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from sparserefine_ros.resources import share_folder
from sparserefine_ros.ros import middleware
from sparserefine_ros.ros.middleware import configure_middleware

HEIGHT, WIDTH = 1024, 2048
PERIOD_S = 0.1
QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
NEW, OLD = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"
VARIABLES = (
    NEW, OLD, middleware.TRANSPORTS_VARIABLE, "RMW_IMPLEMENTATION", "ROS_DISTRO",
    middleware.TOP_PAD_VARIABLE,
)  # fmt: skip
PROFILE = share_folder() / "config" / "fastdds.xml"


@pytest.fixture(autouse=True)
def _nothing_set_by_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        # Set first, so that what the package sets is undone after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mallopt(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Calls of mallopt, which then do not touch the heap of the test process."""
    calls: list[tuple[int, int]] = []

    class Library:
        def __init__(self, name: None) -> None:
            assert name is None

        def mallopt(self, option: int, value: int) -> int:
            calls.append((option, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", Library)
    return calls


def test_the_shipped_profile_and_the_heap_reserve_are_set(mallopt: list[tuple[int, int]]) -> None:
    text = configure_middleware()
    assert os.environ[NEW] == str(PROFILE)
    # M_TOP_PAD, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX of malloc.h.
    assert dict(mallopt) == {-2: 67_108_864, -1: 536_870_912, -3: 33_554_432, -8: 1}
    assert text == f"middleware: Fast DDS with {NEW}={PROFILE}; heap: 64 MiB of reserve"


@pytest.mark.parametrize(
    ("distribution", "name", "file"),
    [
        ("jazzy", OLD, "DEFAULT_FASTRTPS_PROFILES.xml"),
        ("kilted", NEW, "DEFAULT_FASTDDS_PROFILES.xml"),
        ("rolling", NEW, "DEFAULT_FASTDDS_PROFILES.xml"),
    ],
)
def test_each_distribution_by_the_names_that_its_fast_dds_reads(
    distribution: str,
    name: str,
    file: str,
    monkeypatch: pytest.MonkeyPatch,
    mallopt: list[tuple[int, int]],
) -> None:
    monkeypatch.setenv("ROS_DISTRO", distribution)
    other = NEW if name == OLD else OLD
    monkeypatch.setenv(other, "/of/another/version.xml")
    assert f"{name}={PROFILE}" in configure_middleware()
    assert os.environ.pop(name) == str(PROFILE)
    Path(file).touch()
    assert f"{file} in the working folder" in configure_middleware()
    assert name not in os.environ


def test_setting_twice_keeps_the_profile(mallopt: list[tuple[int, int]]) -> None:
    configure_middleware()
    assert f"FASTDDS_DEFAULT_PROFILES_FILE={PROFILE} says" in configure_middleware()
    assert os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] == str(PROFILE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RMW_IMPLEMENTATION", "rmw_cyclonedds_cpp"),
        ("FASTDDS_DEFAULT_PROFILES_FILE", "/home/me/own.xml"),
        ("FASTDDS_BUILTIN_TRANSPORTS", "LARGE_DATA"),
    ],
)
def test_what_the_user_has_set_wins(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, mallopt: list[tuple[int, int]]
) -> None:
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    text = configure_middleware()
    assert dict(os.environ) == before
    assert value in text
    assert str(PROFILE) not in text
    assert mallopt


@pytest.mark.parametrize("name", ["rmw_fastrtps_cpp", "rmw_fastrtps_dynamic_cpp"])
def test_fast_dds_by_name_is_configured(
    name: str, monkeypatch: pytest.MonkeyPatch, mallopt: list[tuple[int, int]]
) -> None:
    monkeypatch.setenv("RMW_IMPLEMENTATION", name)
    configure_middleware()
    assert os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] == str(PROFILE)


def test_a_profile_in_the_working_folder_wins(
    tmp_path: Path, mallopt: list[tuple[int, int]]
) -> None:
    (tmp_path / "DEFAULT_FASTDDS_PROFILES.xml").touch()
    assert "DEFAULT_FASTDDS_PROFILES.xml in the working folder" in configure_middleware()
    assert "FASTDDS_DEFAULT_PROFILES_FILE" not in os.environ


@pytest.mark.parametrize(("free", "enough"), [(32_000_000, True), (29_500_000, False), (0, False)])
def test_without_room_in_shared_memory_the_defaults_stay(
    free: int,
    enough: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    mallopt: list[tuple[int, int]],
) -> None:
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(middleware, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", {tmp_path: usage}.__getitem__)
    text = configure_middleware()
    assert ("FASTDDS_DEFAULT_PROFILES_FILE" in os.environ) == enough
    assert ("expected 30 MB free" in text) == (not enough)
    assert ("--shm-size" in text) == (not enough)


def test_the_heap_reserve_of_the_user_stays(
    monkeypatch: pytest.MonkeyPatch, mallopt: list[tuple[int, int]]
) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1000000")
    assert "heap: MALLOC_TOP_PAD_=1000000" in configure_middleware()
    assert mallopt == []


def test_a_c_library_without_mallopt_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert "no mallopt" in configure_middleware()


def test_the_profile_holds_an_ultra_hd_frame_and_keeps_the_network() -> None:
    space = {"dds": "http://www.eprosima.com"}
    root = ElementTree.parse(PROFILE).getroot()
    segment_bytes = int(root.findtext(".//dds:segment_size", "", space))
    assert segment_bytes > 3840 * 2160 * 3
    assert 2 * (segment_bytes + (1 << 20)) < 64 << 20  # a camera and a node in a Docker container
    kinds = {item.text for item in root.findall(".//dds:transport_descriptor/dds:type", space)}
    assert kinds == {"SHM", "UDPv4"}
    described = {
        item.text for item in root.findall(".//dds:transport_descriptor/dds:transport_id", space)
    }
    used = {item.text for item in root.findall(".//dds:userTransports/dds:transport_id", space)}
    assert used == described


def test_large_best_effort_images_all_arrive() -> None:
    sender, receiver = transfer(30, "configured")
    assert str(PROFILE) in sender["middleware"]
    assert receiver["frames"] == list(range(30))
    assert receiver["damaged"] == []


def test_without_the_profile_large_images_are_lost() -> None:
    """The reason for the profile; should this fail one day, it is no longer needed."""
    sender, receiver = transfer(10, "default")
    if not sender["rmw"].startswith("rmw_fastrtps"):
        pytest.skip(f"{sender['rmw']} is not Fast DDS")
    assert len(receiver["frames"]) < 10


def transfer(count: int, settings: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Send frames between two processes; returns what sender and receiver report."""
    environment = dict(os.environ)
    paths = [str(share_folder()), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    ends = [
        subprocess.Popen(
            [sys.executable, __file__, role, str(count), settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for role in ("receive", "send")
    ]
    try:
        for end in ends:
            assert end.stdout.readline() == "matched\n"
        for end in ends:
            end.stdin.write("go\n")
            end.stdin.flush()
        received, sent = (json.loads(end.communicate(timeout=60)[0]) for end in ends)
    finally:
        for end in ends:
            end.kill()
            end.wait()
    assert [end.returncode for end in ends] == [0, 0]
    return sent, received


def send(node: Node, count: int) -> dict[str, Any]:
    publisher = node.create_publisher(Image, "large", QOS)
    wait_for_match(node, publisher.get_subscription_count)
    message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH)
    start_s = time.monotonic()
    for number in range(count):
        message.header.stamp.sec = number
        message.data = array.array("B", bytes([number])) * (HEIGHT * WIDTH * 3)
        time.sleep(max(0.0, start_s + number * PERIOD_S - time.monotonic()))
        publisher.publish(message)
    # A best-effort publisher that goes away takes its segment, and what is unread in it, along.
    time.sleep(1.0)
    return {}


def receive(node: Node, count: int) -> dict[str, Any]:
    frames: list[int] = []
    damaged: list[int] = []

    def take(message: Image) -> None:
        number = message.header.stamp.sec
        frames.append(number)
        if message.data.tobytes() != bytes([number]) * (HEIGHT * WIDTH * 3):
            damaged.append(number)

    subscription = node.create_subscription(Image, "large", take, QOS)
    wait_for_match(node, subscription.get_publisher_count)
    deadline_s = time.monotonic() + count * PERIOD_S + 3.0
    while len(frames) < count and time.monotonic() < deadline_s:
        rclpy.spin_once(node, timeout_sec=0.1)
    return {"frames": frames, "damaged": damaged}


def wait_for_match(node: Node, matched: Any) -> None:
    """Wait until this end knows the other; say so, and go on when both do."""
    deadline_s = time.monotonic() + 20.0
    while not matched():
        if time.monotonic() > deadline_s:
            raise TimeoutError("expected the other process on the topic within 20 s")
        rclpy.spin_once(node, timeout_sec=0.05)
    print("matched", flush=True)
    sys.stdin.readline()


def run_end(role: str, count: str, settings: str) -> None:
    text = configure_middleware() if settings == "configured" else ""
    rclpy.init()
    node = rclpy.create_node(f"{role}_large")
    try:
        report = {"send": send, "receive": receive}[role](node, int(count))
    finally:
        node.destroy_node()
        rclpy.shutdown()
    report |= {"middleware": text, "rmw": rclpy.utilities.get_rmw_implementation_identifier()}
    print(json.dumps(report))


if __name__ == "__main__":
    run_end(*sys.argv[1:])
