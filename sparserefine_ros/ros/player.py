# SPDX-License-Identifier: Apache-2.0
"""The node `player`: plays the pictures of a bag as a camera would send them."""

from __future__ import annotations

import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import UInt64

from sparserefine_ros.bags.library import IMAGE
from sparserefine_ros.bags.reader import Bag
from sparserefine_ros.bags.storage import Recorded
from sparserefine_ros.bags.topics import choose_image_topic
from sparserefine_ros.errors import BagError
from sparserefine_ros.files import expanded
from sparserefine_ros.ros.parameter_spec import ParameterSpec, declare_parameters
from sparserefine_ros.ros.playing import play_until_signal

NODE_NAME: Final = "player"
IMAGE_TOPIC: Final = "image"
PUBLISHED_TOPIC: Final = "~/published"
LATCHED: Final = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)

PARAMETERS: Final = (
    ParameterSpec("bag", "", "Folder of the bag, or one .mcap or .db3 file."),
    ParameterSpec("image_topic", "", "Topic that is played; empty: the only image topic."),
    ParameterSpec(
        "rate_hz", 0.0, "Pictures per second; 0.0: as recorded.", minimum=0.0, maximum=1000.0
    ),
    ParameterSpec("loop", False, "Whether the bag starts again at its end."),
    ParameterSpec("seconds", 0.0, "Ends after so long; 0.0: at the end.", minimum=0.0, maximum=1e6),
    ParameterSpec(
        "clock",
        False,
        "Whether stamps stay as recorded and /clock follows them; otherwise pictures are stamped "
        "with the time they are sent.",
    ),
    ParameterSpec(
        "wait_for_subscribers",
        1,
        "The first picture waits for so many subscribers; 0: for nobody.",
        minimum=0,
        maximum=1000,
    ),
    ParameterSpec("counted", False, "Whether it waits for a reader of ~/published, too."),
)

# In CDR, behind four bytes that tell the byte order: int32 seconds, uint32 nanoseconds.
_STAMP_AT: Final = 4
_SETTLE_S: Final = 0.5
_TICK_S: Final = 0.01
_COUNT_TIMEOUT: Final = Duration(seconds=2)
# A pause in the recording is not waited for longer.
_LONGEST_GAP_S: Final = 10.0
# From one pass of a loop to the next, where the bag tells no pace.
_LOOP_GAP_S: Final = 0.1


@dataclass(frozen=True)
class PlayerParameters:
    """The values of all parameters; each is described by its entry in PARAMETERS."""

    bag: str
    image_topic: str
    rate_hz: float
    loop: bool
    seconds: float
    clock: bool
    wait_for_subscribers: int
    counted: bool


class PlayerNode(Node):
    """Publishes the messages of an image topic on `image`, best effort; `play` spins it.

    How many it has published it tells on `~/published`, also to late subscribers.

    Args:
        options: passed on to `rclpy.node.Node`.

    Raises:
        BagError: the bag cannot be read, or lacks the topic.
        ConfigurationError: a parameter has an impossible value.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        self._settings = PlayerParameters(**declare_parameters(self, PARAMETERS))
        self._bag = Bag(expanded(self._settings.bag))
        self._topic = choose_image_topic(self._bag, self._settings.image_topic or None)
        kind = Image if self._bag.types[self._topic] == IMAGE else CompressedImage
        self._images = self.create_publisher(kind, IMAGE_TOPIC, qos_profile_sensor_data)
        self._count = self.create_publisher(UInt64, PUBLISHED_TOPIC, LATCHED)
        self._clock_topic = (
            self.create_publisher(Clock, "/clock", qos_profile_sensor_data)
            if self._settings.clock
            else None
        )
        # When the last picture was sent and the next is due, on time.monotonic, and their stamps
        # in nanoseconds.
        self._sent: tuple[float, int] | None = None
        self._due: tuple[float, int] | None = None
        self._spinner = SingleThreadedExecutor(context=self.context)
        self._spinner.add_node(self)

    def play(self, stop: threading.Event) -> int:
        """Publish until the bag or the time ends, or `stop` is set; returns how many.

        Raises:
            BagError: the bag holds no message of the topic.
        """
        self._wait_for_subscribers(stop)
        published, due_s = 0, time.monotonic()
        end_s = due_s + (self._settings.seconds or float("inf"))
        for gap_s, message in self._paced():
            due_s = max(due_s + gap_s, time.monotonic() - gap_s)
            self._due = due_s, _stamp_ns(message.data)
            self._spin_until(min(due_s, end_s), stop)
            if stop.is_set() or due_s >= end_s:
                break
            self._publish(message)
            published += 1
            self._count.publish(UInt64(data=published))
        self._due = None
        self._count.wait_for_all_acked(_COUNT_TIMEOUT)
        # The last message lies in this process's shared memory until it has been fetched.
        self._spin_until(time.monotonic() + _SETTLE_S, stop)
        if not published and not stop.is_set():
            raise BagError(f"expected messages on {self._topic} of {self._bag.path}, got none")
        return published

    def close(self) -> None:
        """Close the bag and take the node out of its executor; call before destroy_node."""
        self._spinner.shutdown()
        self._bag.close()

    def _paced(self) -> Iterator[tuple[float, Recorded]]:
        """Each message with the seconds since the one before; a loop goes on at the last pace."""
        rate_hz, gap_s = self._settings.rate_hz, 0.0
        while True:
            last_ns: int | None = None
            for message in self._bag.messages([self._topic]):
                if rate_hz:
                    gap_s = 1.0 / rate_hz
                elif last_ns is not None:
                    gap_s = min(max(0.0, (message.log_ns - last_ns) / 1e9), _LONGEST_GAP_S)
                last_ns = message.log_ns
                yield gap_s, message
            gap_s = gap_s or _LOOP_GAP_S
            if last_ns is None or not self._settings.loop:
                return

    def _publish(self, message: Recorded) -> None:
        data = bytes(message.data)
        if self._clock_topic is None:
            stamp, stamped = self.get_clock().now().to_msg(), bytearray(data)
            struct.pack_into(_stamp_form(data), stamped, _STAMP_AT, stamp.sec, stamp.nanosec)
            data = bytes(stamped)
        else:
            self._sent = time.monotonic(), _stamp_ns(data)
            self._tick()
        self._images.publish(data)

    def _wait_for_subscribers(self, stop: threading.Event) -> None:
        wanted = {
            self._images: self._settings.wait_for_subscribers,
            self._count: int(self._settings.counted),
        }
        if not any(wanted.values()):
            return
        for publisher, count in wanted.items():
            self.get_logger().info(f"waiting for {count} subscribers on {publisher.topic_name}")
            while not stop.is_set() and publisher.get_subscription_count() < count:
                self._spinner.spin_once(timeout_sec=0.1)
        # A publisher may see a subscriber before it is seen.
        self._spin_until(time.monotonic() + _SETTLE_S, stop)

    def _spin_until(self, end_s: float, stop: threading.Event) -> None:
        """Serve requests until `end_s` on `time.monotonic`; the published clock goes on.

        It reaches the stamp of the next picture when that is due, whatever the pace.
        """
        while not stop.is_set() and (left_s := end_s - time.monotonic()) > 0:
            self._spinner.spin_once(timeout_sec=min(left_s, _TICK_S))
            self._tick()

    def _tick(self) -> None:
        if self._clock_topic is None or self._sent is None:
            return
        sent_s, now_ns = self._sent
        passed_s = time.monotonic() - sent_s
        if self._due is None:
            now_ns += round(1e9 * passed_s)
        elif self._due[0] > sent_s:
            due_s, due_ns = self._due
            now_ns += round(max(0, due_ns - now_ns) * min(1.0, passed_s / (due_s - sent_s)))
        clock = Time(sec=now_ns // 10**9, nanosec=now_ns % 10**9)
        self._clock_topic.publish(Clock(clock=clock))


def _stamp_form(data: bytes | memoryview) -> str:
    """Of the header's stamp, for `struct`; the second byte tells the byte order of the rest."""
    return "<iI" if data[1:2] == b"\x01" else ">iI"


def _stamp_ns(data: bytes | memoryview) -> int:
    seconds, nanoseconds = struct.unpack_from(_stamp_form(data), data, _STAMP_AT)
    return int(seconds) * 10**9 + int(nanoseconds)


def main(args: list[str] | None = None) -> int:
    """Play the bag to its end, or until SIGINT or SIGTERM.

    Returns:
        0, or 1 when the bag or a parameter is unusable.
    """
    return play_until_signal(PlayerNode, NODE_NAME, args)


if __name__ == "__main__":
    sys.exit(main())
