# SPDX-License-Identifier: Apache-2.0
"""The node `replay_report`: what becomes of the pictures that a player sends to the node."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import Image
from std_msgs.msg import UInt64

from sparserefine_ros.errors import SparseRefineError
from sparserefine_ros.files import write_text_whole
from sparserefine_ros.ros.middleware import configure_middleware
from sparserefine_ros.ros.player import LATCHED
from sparserefine_ros.ros.stopping import init_until_signal
from sparserefine_ros.ros.watching import NodeStatus

NODE_NAME: Final = "replay_report"
LABELS_TOPIC: Final = "segment/labels"
PUBLISHED_TOPIC: Final = "player/published"
# Logged for whoever waits to start a player, such as launch/replay.launch.py.
ACTIVE: Final = "the node is active"
_PERCENTILES: Final = (50, 90, 99, 100)
_COUNTERS: Final = ("received", "processed", "in_flight", "lost_in_middleware")


@dataclass(frozen=True)
class ReplayReport:
    """What became of the pictures.

    Attributes:
        published: pictures the player sent.
        received: pictures that reached the node.
        processed: pictures it segmented.
        in_flight: pictures it was busy with when it last told.
        lost_in_middleware: pictures that never reached it, as it counts them.
        dropped: pictures it gave up, by reason.
        rejected: pictures it could not use, by reason.
        labels: label images that came back.
        latency_ms: from the stamp of a picture to the arrival of its labels here; percentiles.
        age_ms: from the stamp of a picture to the publication of its labels, as the node tells.
        node_ms: from the arrival of a picture in the node to that publication, over its last
            pictures, as the node tells.
        deadline: what the node tells of its deadline; empty without one.
    """

    published: int
    received: int
    processed: int
    in_flight: int
    lost_in_middleware: int
    dropped: Mapping[str, int]
    rejected: Mapping[str, int]
    labels: int
    latency_ms: Mapping[str, float]
    age_ms: Mapping[str, float]
    node_ms: Mapping[str, float]
    deadline: Mapping[str, float]

    def to_json(self) -> str:
        """For files and terminals."""
        return json.dumps(asdict(self), indent=2) + "\n"


class ReplayListener(Node):
    """Listens to labels, diagnostics and the player's count.

    Args:
        options: passed on to `rclpy.node.Node`.

    Attributes:
        status: of the segmentation node.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        self.status = NodeStatus()
        self._published = 0
        self._latencies_ms: list[float] = []
        self._labels = 0
        self.create_subscription(Image, LABELS_TOPIC, self._take_labels, qos_profile_sensor_data)
        self.create_subscription(UInt64, PUBLISHED_TOPIC, self._take_count, LATCHED)
        self.create_subscription(DiagnosticArray, "/diagnostics", self.status.take, 10)

    @property
    def received(self) -> int:
        """Pictures that have reached the node."""
        return self._count("received")

    def report(self) -> ReplayReport:
        """What is known by now."""
        totals = {key: self._count(key) for key in _COUNTERS}
        return ReplayReport(
            published=self._published,
            **totals,
            dropped=self._reasons("dropped."),
            rejected=self._reasons("rejected."),
            labels=self._labels,
            latency_ms=_percentiles(self._latencies_ms),
            age_ms=self._figures("age_ms.", ("median", "p99")),
            node_ms=self._figures("latency_ms.total.", ("median", "p99")),
            deadline=self._figures(
                "deadline.", ("budget_ms", "affordable_pixels.median", "late_share")
            ),
        )

    def _count(self, key: str) -> int:
        return sum(_number(values, key) for values in self.status.values.values())

    def _figures(self, prefix: str, names: Sequence[str]) -> dict[str, float]:
        """Those of the node's figures that are numbers."""
        found = {
            name: _figure(values.get(prefix + name, ""))
            for values in self.status.values.values()
            for name in names
        }
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def _take_labels(self, message: Image) -> None:
        self._labels += 1
        delay_ms = (self.get_clock().now() - Time.from_msg(message.header.stamp)).nanoseconds / 1e6
        # The clock of a bag that starts again jumps back before the last labels have come.
        if delay_ms >= 0:
            self._latencies_ms.append(delay_ms)

    def _take_count(self, message: UInt64) -> None:
        self._published = message.data

    def _reasons(self, prefix: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for values in self.status.values.values():
            for key in values:
                if key.startswith(prefix) and (count := _number(values, key)):
                    reason = key.removeprefix(prefix)
                    counts[reason] = counts.get(reason, 0) + count
        return counts


def _percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    if not milliseconds:
        return {}
    values = np.percentile(milliseconds, _PERCENTILES).tolist()
    return {f"p{p}": round(v, 2) for p, v in zip(_PERCENTILES, values, strict=True)}


def _number(values: Mapping[str, str], key: str) -> int:
    text = values.get(key, "0")
    return int(text) if text.isdigit() else 0


def _figure(text: str) -> float:
    """NaN where the node has none to tell."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def main(args: list[str] | None = None) -> int:
    """Listen until SIGINT or SIGTERM, then print the report and write it to parameter `report`.

    It logs ACTIVE once the node is, and ends at once with code 1 if that cannot be configured.
    """
    configure_middleware()
    stop = init_until_signal(args)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(rclpy.try_shutdown)
        node = ReplayListener()
        cleanup.callback(node.destroy_node)
        path = str(node.declare_parameter("report", "").value)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        active = False
        while not stop.is_set() and not node.status.failure:
            executor.spin_once(timeout_sec=0.1)
            if node.status.state == "active" and not active:
                active = True
                node.get_logger().info(ACTIVE)
        executor.shutdown()
        if node.status.failure:
            node.get_logger().fatal(f"no replay: {node.status.failure}")
            return 1
        text = node.report().to_json()
        print(text, end="", flush=True)
        try:
            if path:
                write_text_whole(Path(path), text)
        except SparseRefineError as err:
            node.get_logger().fatal(str(err))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
