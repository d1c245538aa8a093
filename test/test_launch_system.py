# SPDX-License-Identifier: Apache-2.0
"""The launched system under launch_testing: two cameras, their labels, a clean end.

The package must be installed where ROS finds it (colcon or pip, AMENT_PREFIX_PATH).
"""

from __future__ import annotations

import os
import time
import unittest
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("launch_testing", reason="launch_testing is not installed (not on PyPI)")
pytest.importorskip("launch_testing_ros", reason="launch_testing_ros is not installed")

import launch
import launch_testing
import launch_testing.actions
import launch_testing.asserts
import launch_testing.markers
import rclpy
from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch.actions import IncludeLaunchDescription, SetLaunchConfiguration
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node
from lifecycle_msgs.srv import GetState
from sensor_msgs.msg import Image

try:
    get_package_prefix("sparserefine_ros")
except (PackageNotFoundError, OSError):  # OSError: no environment of ROS is sourced
    pytest.skip("sparserefine_ros is not installed for ROS", allow_module_level=True)

LAUNCH_FILE = Path(__file__).parents[1] / "launch" / "segment.launch.py"
CAMERAS = {"front": "/front/image_raw", "rear": "/rear/image_raw"}

os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"


@pytest.mark.launch_test
@launch_testing.markers.keep_alive
def generate_test_description() -> launch.LaunchDescription:
    """Two cameras and the node in a namespace."""
    cameras = [
        Node(
            package="sparserefine_ros",
            executable="camera",
            name=f"camera_{name}",
            remappings=[("image", topic)],
            parameters=[{"source": "street:7:160x120", "loop": True, "rate_hz": 5.0}],
        )
        for name, topic in CAMERAS.items()
    ]
    # A busy machine takes its time to end processes.
    patience = SetLaunchConfiguration("sigterm_timeout", "30")
    segment = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(LAUNCH_FILE)),
        launch_arguments={
            "image_topics": f"[{', '.join(CAMERAS.values())}]",
            "namespace": "robot",
        }.items(),
    )
    return launch.LaunchDescription(
        [patience, *cameras, segment, launch_testing.actions.ReadyToTest()]
    )


class TestRunning(unittest.TestCase):
    """While it runs."""

    def setUp(self) -> None:
        rclpy.init()
        self.node = rclpy.create_node("watcher")

    def tearDown(self) -> None:
        self.node.destroy_node()
        rclpy.try_shutdown()

    def spin_until(self, met: Any, what: str) -> None:
        end = time.monotonic() + 60.0
        while not met():
            rclpy.spin_once(self.node, timeout_sec=0.1)
            assert time.monotonic() < end, f"waited in vain for {what}"

    def test_labels_of_each_camera(self) -> None:
        received: dict[str, list[Image]] = {name: [] for name in CAMERAS}
        for name, messages in received.items():
            self.node.create_subscription(
                Image, f"/robot/segment/{name}/labels", messages.append, 1
            )
        self.spin_until(lambda: all(received.values()), "labels")
        for messages in received.values():
            first = messages[0]
            assert (first.encoding, first.height, first.width) == ("mono8", 120, 160)

    def test_the_node_is_active(self) -> None:
        client = self.node.create_client(GetState, "/robot/segment/get_state")
        self.spin_until(client.service_is_ready, "the service get_state")
        states = []

        def active() -> bool:
            future = client.call_async(GetState.Request())
            rclpy.spin_until_future_complete(self.node, future, timeout_sec=2.0)
            if future.done():
                states.append(future.result().current_state.label)
            return states[-1:] == ["active"]

        self.spin_until(active, "the state active")


@launch_testing.post_shutdown_test()
class TestEnded(unittest.TestCase):
    """After Ctrl-C."""

    def test_everything_ended_cleanly(self, proc_info: Any) -> None:
        launch_testing.asserts.assertExitCodes(proc_info)
