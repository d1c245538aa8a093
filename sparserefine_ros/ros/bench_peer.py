# SPDX-License-Identifier: Apache-2.0
"""The node `bench_peer`, the other side in benchmarks: sends pictures, takes what comes back."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import Any, Final

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sparserefine_ros.evaluation.bench import street_pictures
from sparserefine_ros.image import MAX_SIDE
from sparserefine_ros.ros.cameras import NOT_SET
from sparserefine_ros.ros.compressed import picture_to_jpeg
from sparserefine_ros.ros.convert import array_to_image
from sparserefine_ros.ros.middleware import configure_middleware
from sparserefine_ros.ros.parameter_spec import ParameterSpec, declare_parameter, from_ros
from sparserefine_ros.ros.stopping import init_until_signal

PARAMETERS: Final = (
    ParameterSpec("publish", NOT_SET, "Topics to publish on; the last part compressed: JPEG."),
    ParameterSpec("listen", NOT_SET, "Topics to take; the last part compressed: CompressedImage."),
    ParameterSpec("rate_hz", 10.0, "Pictures per second on each.", minimum=0.1, maximum=1000.0),
    ParameterSpec(
        "count",
        1,
        "Pictures on each; the first and the last come a second apart.",
        minimum=1,
        maximum=1_000_000_000,
    ),
    ParameterSpec("width", 2048, "Of the picture in pixels.", minimum=1, maximum=MAX_SIDE),
    ParameterSpec("height", 1024, "Of the picture in pixels.", minimum=1, maximum=MAX_SIDE),
)
# A publisher may see a subscriber before it is seen; a best-effort message would be lost then.
_SETTLE_S: Final = 1.0
# A lost message is noticed from those before and after it: the first and the last come in quiet.
_QUIET_S: Final = 1.0


class BenchPeer(Node):
    """Publishes and listens as its parameters say."""

    def __init__(self) -> None:
        super().__init__("bench_peer")
        for spec in PARAMETERS:
            declare_parameter(self, spec, read_only=True)
        settings: dict[str, Any] = {
            spec.name: from_ros(self.get_parameter(spec.name).value) for spec in PARAMETERS
        }
        self._rate_hz, self._count = settings["rate_hz"], settings["count"]
        self._topics = [topic for topic in settings["publish"] if topic]
        self._cameras: list[Any] = [
            self.create_publisher(_kind(topic), topic, qos_profile_sensor_data)
            for topic in self._topics
        ]
        for topic in filter(None, settings["listen"]):
            self.create_subscription(
                _kind(topic), topic, lambda message: None, qos_profile_sensor_data
            )
        if self._topics:
            (self._picture,) = street_pictures((settings["height"], settings["width"]), count=1)

    def play(self, stop: threading.Event) -> None:
        """Publish one picture on each topic in turn, evenly spaced, then serve until `stop`."""
        spinner = SingleThreadedExecutor()
        spinner.add_node(self)
        while not stop.is_set() and any(c.get_subscription_count() == 0 for c in self._cameras):
            spinner.spin_once(timeout_sec=0.05)
        start_s = time.monotonic() + _SETTLE_S
        makers = [picture_to_jpeg if _kind(topic) is CompressedImage else _to_raw
                  for topic in self._topics]  # fmt: skip
        messages = [make(self._picture, Header()) for make in makers]
        total = self._count * len(self._topics)
        for index in range(total):
            pauses = (index >= len(self._topics)) + (index >= total - len(self._topics))
            due_s = start_s + index / (self._rate_hz * len(self._topics)) + pauses * _QUIET_S
            if stop.wait(max(0.0, due_s - time.monotonic())):
                return
            message = messages[index % len(messages)]
            message.header.stamp = self.get_clock().now().to_msg()
            self._cameras[index % len(messages)].publish(message)
        while not stop.is_set():
            spinner.spin_once(timeout_sec=0.2)


def _kind(topic: str) -> Any:
    return CompressedImage if topic.endswith("/compressed") else Image


def _to_raw(picture: Any, header: Header) -> Image:
    return array_to_image(picture, "rgb8", header)


def main(args: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM."""
    configure_middleware()
    stop = init_until_signal(args)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(rclpy.try_shutdown)
        node = BenchPeer()
        cleanup.callback(node.destroy_node)
        node.play(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
