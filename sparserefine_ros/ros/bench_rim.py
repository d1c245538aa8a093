# SPDX-License-Identifier: Apache-2.0
"""CPU time of the rim per message: from a camera's message to an array, from arrays to messages.

Measured is the CPU time of the whole process, with the middleware's threads, while the other side
is a process of its own: taking and deserialising a message counts, and so does publishing one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from tqdm import tqdm

from sparserefine_ros.errors import SparseRefineError
from sparserefine_ros.evaluation.bench import street_pictures
from sparserefine_ros.evaluation.measure import Spread, describe_machine
from sparserefine_ros.records import Map
from sparserefine_ros.ros.convert import compressed_to_rgb, image_to_rgb
from sparserefine_ros.ros.middleware import configure_middleware
from sparserefine_ros.ros.processes import NodeProcess, isolate, start_node
from sparserefine_ros.ros.publishers import OUTPUTS, newest_only
from sparserefine_ros.ros.stopping import init_for_command

# What a frame costs in all, by the outputs that have a subscriber; the input is raw.
SETS: Final = {
    "labels only": ("labels",),
    "labels, entropy, confidence": ("labels", "entropy", "confidence"),
}

_PERIOD_S: Final = 0.1
_TIMEOUT_S: Final = 60.0
_PEER: Final = "sparserefine_ros.ros.bench_peer"
_INPUTS: Final[dict[str, tuple[type, Callable[..., NDArray[np.uint8]]]]] = {
    "/bench/image": (Image, image_to_rgb),
    "/bench/image/compressed": (CompressedImage, compressed_to_rgb),
}


@dataclass(frozen=True)
class RimFigures:
    """One benchmark run.

    Attributes:
        machine: processor, cores, versions.
        width, height: picture size.
        messages: number of messages of each kind.
        rows: CPU milliseconds of each kind of message, and of whole frames.
    """

    machine: str
    width: int
    height: int
    messages: int
    rows: dict[str, Spread]

    def to_table(self) -> str:
        """For people."""
        lines = [
            f"rim, CPU time per message: {self.width} x {self.height}, {self.messages} of each",
            self.machine,
            f"{'CPU ms':<44}{'median':>10}{'p10':>10}{'p90':>10}",
        ]
        for name, spread in self.rows.items():
            lines.append(f"{name:<44}{spread.median:10.2f}{spread.low:10.2f}{spread.high:10.2f}")
        return "\n".join(lines) + "\n"


def bench_rim(size: tuple[int, int], *, messages: int) -> RimFigures:
    """Time each kind of message the node takes and publishes.

    Args:
        size: (H, W) of the pictures.
        messages: number of messages of each kind.

    Raises:
        SparseRefineError: the other side failed, or nothing came.
    """
    isolate()
    configure_middleware()
    init_for_command()
    try:
        taken = {topic: _time_input(topic, size, messages) for topic in _INPUTS}
        published = _time_outputs(size, messages)
    finally:
        rclpy.try_shutdown()
    raw, jpeg = taken.values()
    rows = {"in: raw rgb8": raw, "in: compressed JPEG": jpeg}
    rows |= {f"out: {name}": times for name, times in published.items() if name in OUTPUTS}
    rows |= {f"frame: raw in, {name}": _sums(raw, published[name]) for name in SETS}
    return RimFigures(
        machine=describe_machine(),
        width=size[1],
        height=size[0],
        messages=messages,
        rows={name: Spread.of(times) for name, times in rows.items()},
    )


def _sums(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(first, second, strict=True)]


def _time_input(topic: str, size: tuple[int, int], messages: int) -> list[float]:
    """CPU milliseconds from one picture in hand to the next one."""
    kind, to_rgb = _INPUTS[topic]
    moments_s: list[float] = []

    def take(message: Any) -> None:
        to_rgb(message, max_pixels=size[0] * size[1])
        moments_s.append(time.process_time())

    node = Node("bench_rim")
    node.create_subscription(kind, topic, take, newest_only("best_effort"))
    settings: dict[str, str | int | float | bool] = {
        "publish": f"[{topic}]",
        "rate_hz": 1.0 / _PERIOD_S,
        # A few more than needed: some may be lost.
        "count": 2 * messages + 10,
        "height": size[0],
        "width": size[1],
    }
    spinner = SingleThreadedExecutor()
    spinner.add_node(node)
    with start_node(_PEER, parameters=settings, remaps={}) as peer:
        end_s = time.monotonic() + _TIMEOUT_S + 2 * messages * _PERIOD_S
        while len(moments_s) <= messages:
            # Woken by messages alone: waking up in between would count.
            spinner.spin_once(timeout_sec=1.0)
            _check(peer, end_s)
    spinner.shutdown()
    node.destroy_node()
    return [1e3 * float(each) for each in np.diff(moments_s)]


def _time_outputs(size: tuple[int, int], messages: int) -> dict[str, list[float]]:
    """CPU milliseconds of each output, and of the sets of outputs together."""
    (picture,) = street_pictures(size, count=1)
    node = Node("bench_rim")
    publishers: dict[str, Any] = {
        name: node.create_publisher(output.kind, f"/bench/{name}", newest_only("reliable"))
        for name, output in OUTPUTS.items()
    }
    arrays = _example_maps(picture)
    topics = ", ".join(f"/bench/{name}" for name in OUTPUTS)
    with start_node(_PEER, parameters={"listen": f"[{topics}]"}, remaps={}) as peer:
        end_s = time.monotonic() + _TIMEOUT_S
        while any(each.get_subscription_count() == 0 for each in publishers.values()):
            time.sleep(0.05)
            _check(peer, end_s)
        times = {
            name: _time_publishing(names, publishers, arrays, messages)
            for name, names in {**{name: (name,) for name in OUTPUTS}, **SETS}.items()
        }
    node.destroy_node()
    return times


def _time_publishing(
    names: Sequence[str],
    publishers: dict[str, Any],
    arrays: dict[Map | None, NDArray[Any]],
    messages: int,
) -> list[float]:
    times = []
    for _ in tqdm(range(messages), desc=", ".join(names), unit="frame"):
        start_s = time.process_time()
        for name in names:
            output = OUTPUTS[name]
            publishers[name].publish(output.to_message(arrays[output.source], Header()))
        # The middleware sends in a thread of its own, which has ended by then.
        time.sleep(_PERIOD_S)
        times.append(1e3 * (time.process_time() - start_s))
    return times


def _example_maps(picture: NDArray[np.uint8]) -> dict[Map | None, NDArray[Any]]:
    """Maps with the coarse structure of real ones, which decides what PNG costs."""
    grey = picture.mean(2)
    return {
        Map.LABELS: (grey // 24).astype(np.uint8),
        Map.ENTROPY: (grey / 100.0).astype(np.float32),
        Map.CONFIDENCE: grey.astype(np.uint8),
        Map.REFINED: np.where(grey > 128, np.uint8(255), np.uint8(0)),
        None: picture,
    }


def _check(peer: NodeProcess, end_s: float) -> None:
    peer.check_running()
    if time.monotonic() > end_s:
        raise SparseRefineError(f"the other side of the benchmark is silent:\n{peer.log()}")
