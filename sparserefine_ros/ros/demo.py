# SPDX-License-Identifier: Apache-2.0
"""The demo: camera node and segmentation node as processes, watched over DDS."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import SparseRefineError
from sparserefine_ros.outputs import ResultWriter
from sparserefine_ros.ros.convert import image_to_rgb
from sparserefine_ros.ros.middleware import configure_middleware
from sparserefine_ros.ros.processes import isolate, start_node
from sparserefine_ros.ros.stopping import init_for_command
from sparserefine_ros.ros.watching import NodeStatus, spin_for, spin_until, wait_until_active
from sparserefine_ros.sources import open_source

CAMERA_TOPIC: Final = "/camera/image"
STREET: Final = "street:7:1280x640"
ENDLESS_FRAMES: Final = 60
_PARTS: Final[Mapping[str, type[np.generic]]] = {
    "labels": np.uint8,
    "entropy": np.float32,
    "refined": np.uint8,
}
_SETTLE_S: Final = 3.0
_MOST_PIXELS: Final = 64_000_000


def run_demo(*, source: str, bundle: str, out: Path, frames: int, rate_hz: float) -> int:
    """Play a source through the real node and write what comes back to `out`.

    Args:
        source: see `sparserefine_ros.sources.open_source`; "street" for the demo's own street.
        bundle: folder or shipped name.
        out: folder for pictures, contact sheet and video.
        frames: frames at most; 0 for all, 60 of an endless source.
        rate_hz: frames per second of the camera.

    Returns:
        Exit code 0.

    Raises:
        SparseRefineError: source or bundle is unusable, a node failed, or nothing came back.
    """
    source = STREET if source == "street" else source
    opened = Bundle.named(bundle)
    length = open_source(source).length
    count = frames or (ENDLESS_FRAMES if length is None else length)
    isolate()
    print(configure_middleware())
    init_for_command()
    try:
        writer = ResultWriter(out, opened, video_fps=rate_hz, expected=count)
        viewer = Viewer(writer)
        try:
            _play(viewer, source, opened, count, rate_hz)
        finally:
            viewer.destroy_node()
            writer.close()
    finally:
        rclpy.try_shutdown()
    if writer.frames == 0:
        raise SparseRefineError("no frame came back from the segmentation node; see its log above")
    print(f"\n{writer.frames} frames, results in {out.resolve()}; look at contact_sheet.jpg first")
    return 0


def _play(viewer: Viewer, source: str, bundle: Bundle, count: int, rate_hz: float) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(viewer)
    remaps = {"image": CAMERA_TOPIC}
    camera_settings: dict[str, str | int | float | bool] = {
        "source": source,
        "rate_hz": rate_hz,
        "count": count,
        "loop": False,
        # The segmentation node and the viewer: neither may miss the first frame.
        "wait_for_subscribers": 2,
    }
    with start_node(
        "sparserefine_ros.ros.segment",
        parameters={"bundle": str(bundle.folder.resolve())},
        remaps=remaps,
    ) as segment:
        try:
            wait_until_active(executor, viewer.status, segment)
            print(f"node active after start; playing {source}: {count} frames at {rate_hz:g} Hz")
            with start_node(
                "sparserefine_ros.ros.camera", parameters=camera_settings, remaps=remaps
            ) as camera:
                spin_until(executor, lambda: camera.exit_code is not None, math.inf, segment)
                spin_for(executor, _SETTLE_S)
                if camera.exit_code != 0:
                    camera.check_running()
        except SparseRefineError:
            print(segment.log())
            raise
    executor.shutdown()


class Viewer(Node):
    """Joins pictures and maps by their stamp, hands them to a writer, prints the diagnostics.

    Attributes:
        status: of the segmentation node.
    """

    def __init__(self, writer: ResultWriter) -> None:
        super().__init__("viewer")
        self.status = NodeStatus()
        self._writer = writer
        # Pictures whose maps have not all come; the oldest is forgotten beyond eight.
        self._waiting: OrderedDict[tuple[int, int], dict[str, Image]] = OrderedDict()
        for name, topic in (
            ("image", CAMERA_TOPIC),
            *((part, f"/segment/{part}") for part in _PARTS),
        ):
            self.create_subscription(
                Image, topic, lambda message, part=name: self._take(part, message),
                qos_profile_sensor_data,
            )  # fmt: skip
        self.create_subscription(DiagnosticArray, "/diagnostics", self._report, 10)

    def _take(self, part: str, message: Image) -> None:
        key = (message.header.stamp.sec, message.header.stamp.nanosec)
        parts = self._waiting.setdefault(key, {})
        parts[part] = message
        if len(parts) == 1 + len(_PARTS):
            del self._waiting[key]
            self._write(parts)
        while len(self._waiting) > 8:
            self._waiting.popitem(last=False)

    def _write(self, parts: Mapping[str, Image]) -> None:
        labels, entropy, refined = (_map(parts[name], kind) for name, kind in _PARTS.items())
        self._writer.add(
            f"frame_{self._writer.frames:04d}",
            image_to_rgb(parts["image"], max_pixels=_MOST_PIXELS),
            labels,
            entropy,
            refined > 0,
        )

    def _report(self, message: DiagnosticArray) -> None:
        self.status.take(message)
        for values in self.status.values.values():
            if "latency_ms.total.last" in values:
                print(live_line(values), flush=True)


def _map(message: Image, kind: type[np.generic]) -> NDArray[Any]:
    return np.frombuffer(message.data, kind).reshape(message.height, message.width)


def live_line(values: Mapping[str, str]) -> str:
    """Frame rate, refined share, latency per stage and drops, from the node's diagnostics."""
    stages = (
        f"{key.split('.')[1]} {float(value):.0f}"
        for key, value in values.items()
        if key.startswith("latency_ms.") and key.endswith(".median") and "total" not in key
    )
    return (
        f"{values['fps']:>6} fps | refined {float(values['refined_share.last']):6.1%} | "
        f"{float(values['latency_ms.total.median']):.0f} ms ({', '.join(stages)}) | "
        f"received {values['received']}, processed {values['processed']}, "
        f"dropped {values['dropped']}, rejected {values['rejected']}"
    )
