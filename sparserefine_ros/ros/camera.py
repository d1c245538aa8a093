# SPDX-License-Identifier: Apache-2.0
"""The node `camera`: plays pictures, videos or a procedural street as camera messages."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sparserefine_ros.image import MAX_SIDE, resize_image
from sparserefine_ros.ros.compressed import picture_to_jpeg
from sparserefine_ros.ros.convert import array_to_image
from sparserefine_ros.ros.parameter_spec import ParameterSpec, declare_parameters
from sparserefine_ros.ros.playing import play_until_signal
from sparserefine_ros.sources import ACCEPTED, Frame, open_source

NODE_NAME: Final = "camera"
IMAGE_TOPIC: Final = "image"

PARAMETERS: Final = (
    ParameterSpec("source", "street", f"What is played: {ACCEPTED}."),
    ParameterSpec(
        "transport",
        "raw",
        "Message type on the topic image: raw for sensor_msgs/Image, compressed for "
        "sensor_msgs/CompressedImage in JPEG.",
        choices=("raw", "compressed"),
    ),
    ParameterSpec(
        "rate_hz", 0.0, "Frames per second; 0.0: the source's own.", minimum=0.0, maximum=1000.0
    ),
    ParameterSpec("loop", False, "Whether a source that has ended starts again."),
    ParameterSpec(
        "count", 0, "Ends after so many frames; 0: no limit.", minimum=0, maximum=1_000_000_000
    ),
    ParameterSpec("frame_id", "camera", "Coordinate frame in the headers."),
    ParameterSpec(
        "width",
        0,
        "Width to resize to in pixels; 0: as it comes, or in proportion to height.",
        minimum=0,
        maximum=MAX_SIDE,
    ),
    ParameterSpec(
        "height",
        0,
        "Height to resize to in pixels; 0: as it comes, or in proportion to width.",
        minimum=0,
        maximum=MAX_SIDE,
    ),
    ParameterSpec(
        "wait_for_subscribers",
        1,
        "The first frame waits for so many subscribers; 0: for nobody.",
        minimum=0,
        maximum=1000,
    ),
)

# A publisher may see a subscriber before it is seen; a best-effort message would be lost then.
_SETTLE_S: Final = 0.5
# The last message lies in this process's shared memory until the subscriber has fetched it.
_LINGER_S: Final = 0.5
_LONGEST_SPIN_S: Final = 0.1


@dataclass(frozen=True)
class CameraParameters:
    """The values of all parameters; each is described by its entry in PARAMETERS."""

    source: str
    transport: str
    rate_hz: float
    loop: bool
    count: int
    frame_id: str
    width: int
    height: int
    wait_for_subscribers: int


class CameraNode(Node):
    """Publishes the frames of a source on `image`, best effort; `play` spins it.

    Args:
        options: passed on to `rclpy.node.Node`.

    Raises:
        ConfigurationError: a parameter has an impossible value.
        ImageError: the source cannot be opened.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        self._settings = CameraParameters(**declare_parameters(self, PARAMETERS))
        self._source = open_source(self._settings.source)
        self._message_type = CompressedImage if self._settings.transport == "compressed" else Image
        self._publisher = self.create_publisher(
            self._message_type, IMAGE_TOPIC, qos_profile_sensor_data
        )
        self._spinner = SingleThreadedExecutor(context=self.context)
        self._spinner.add_node(self)

    def play(self, stop: threading.Event) -> int:
        """Publish until the source or the count ends, or `stop` is set.

        Only one frame is held at a time. A source slower than the rate is published as it comes.

        Returns:
            number of frames published.

        Raises:
            ImageError: a picture of the source cannot be read.
        """
        settings = self._settings
        rate_hz = settings.rate_hz or self._source.fps
        if settings.wait_for_subscribers > 0:
            self._wait_for_subscribers(settings.wait_for_subscribers, stop)
        self.get_logger().info(f"playing {settings.source} at {rate_hz:g} Hz")
        try:
            return self._publish_all(rate_hz, stop)
        finally:
            # Also after a broken picture: the good ones before it shall arrive.
            self._spin_until(time.monotonic() + _LINGER_S, stop)

    def _publish_all(self, rate_hz: float, stop: threading.Event) -> int:
        settings, pace = self._settings, _Pace(1.0 / rate_hz)
        published, slow = 0, False
        for frame in itertools.islice(self._frames(), settings.count or None):
            picture = _resize(frame.image, settings.height, settings.width)
            self._spin_until(pace.due_s, stop)
            if stop.is_set():
                break
            self._publish(picture)
            published += 1
            if pace.advance() and not slow:
                slow = True
                self.get_logger().warning(
                    f"the source gives fewer than {rate_hz:g} frames per second; "
                    "publishing as fast as they come"
                )
        return published

    def close(self) -> None:
        """Take the node out of its executor; call before destroy_node."""
        self._spinner.shutdown()

    def _frames(self) -> Iterator[Frame]:
        yield from self._source
        while self._settings.loop:
            yield from self._source

    def _wait_for_subscribers(self, count: int, stop: threading.Event) -> None:
        topic = self.resolve_topic_name(IMAGE_TOPIC)
        self.get_logger().info(f"waiting for subscribers on {topic}, {count} in all")
        while not stop.is_set() and self._publisher.get_subscription_count() < count:
            self._spinner.spin_once(timeout_sec=_LONGEST_SPIN_S)
        self._spin_until(time.monotonic() + _SETTLE_S, stop)

    def _spin_until(self, end_s: float, stop: threading.Event) -> None:
        """Serve parameter requests until `end_s` on `time.monotonic`."""
        while not stop.is_set() and (left_s := end_s - time.monotonic()) > 0:
            # A signal is noticed between two spins.
            self._spinner.spin_once(timeout_sec=min(left_s, _LONGEST_SPIN_S))

    def _publish(self, picture: NDArray[np.uint8]) -> None:
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._settings.frame_id)
        if self._message_type is Image:
            self._publisher.publish(array_to_image(picture, "rgb8", header))
        else:
            self._publisher.publish(picture_to_jpeg(picture, header))


class _Pace:
    """When the next frame is due; frames that come too late are not caught up with."""

    def __init__(self, period_s: float) -> None:
        self.due_s = 0.0
        self._period_s = period_s

    def advance(self) -> bool:
        """Go on to the next frame; returns whether this one was late by more than a period."""
        now_s = time.monotonic()
        first = self.due_s == 0.0
        late = not first and now_s - self.due_s > self._period_s
        self.due_s = (now_s if first or late else self.due_s) + self._period_s
        return late


def _resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize to `height` and `width`; one that is 0 follows from the other's proportion."""
    if height == 0 and width == 0:
        return image
    height = height or max(1, round(image.shape[0] * width / image.shape[1]))
    width = width or max(1, round(image.shape[1] * height / image.shape[0]))
    return resize_image(image, (height, width))


def main(args: list[str] | None = None) -> int:
    """Play the source to its end, or until SIGINT or SIGTERM.

    Returns:
        0, or 1 when the source or a parameter is unusable.
    """
    return play_until_signal(CameraNode, NODE_NAME, args)


if __name__ == "__main__":
    sys.exit(main())
