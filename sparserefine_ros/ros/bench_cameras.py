# SPDX-License-Identifier: Apache-2.0
"""Several cameras that are faster than the node: ages, fairness, counters and memory over time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from sparserefine_ros.evaluation.measure import describe_machine
from sparserefine_ros.pipeline import PipelineOptions
from sparserefine_ros.ros.bench import node_parameters
from sparserefine_ros.ros.middleware import configure_middleware
from sparserefine_ros.ros.processes import isolate, start_node
from sparserefine_ros.ros.stopping import init_for_command
from sparserefine_ros.ros.watching import (
    TIMEOUT_S,
    NodeStatus,
    spin_for,
    spin_until,
    wait_until_active,
)

_DIAGNOSTICS_PERIOD_S: Final = 0.1
_SETTLE_S: Final = 5.0
# The first frames are slower: caches and memory are filled.
_WARMUP: Final = 5


@dataclass(frozen=True)
class CameraFigures:
    """What became of one camera's frames.

    Attributes:
        sent: frames published.
        received, processed, dropped, rejected, lost: the node's counters at the end.
        unexplained: frames in none of these; 0 when the counters are exact.
        processing_ms: median time from taking a frame to its publication.
        wait_ms: time of a processed frame between arrival and processing: median, 95th percentile
            and maximum.
        over_ms: the same of its age, from stamp to publication, beyond its processing time: the
            wait and the transport.
        over_20_ms: share of frames whose age is more than 20 ms beyond, 0 .. 1.
    """

    sent: int
    received: int
    processed: int
    dropped: int
    rejected: int
    lost: int
    unexplained: int
    processing_ms: float
    wait_ms: tuple[float, float, float]
    over_ms: tuple[float, float, float]
    over_20_ms: float


@dataclass(frozen=True)
class CamerasFigures:
    """One run.

    Attributes:
        machine: processor, cores, versions.
        bundle: name of the bundle.
        width, height: picture size.
        rate_hz: of each camera.
        seconds: of sending.
        cameras: by name.
        unequal: difference of the most and the least served camera, share of the mean.
        memory_mb: resident memory of the node: median of each tenth of the time.
        load: processes that wanted a core over the last minute, those of others as well.
    """

    machine: str
    bundle: str
    width: int
    height: int
    rate_hz: float
    seconds: float
    cameras: dict[str, CameraFigures]
    unequal: float
    memory_mb: list[float]
    load: float

    def to_table(self) -> str:
        """For people."""
        lines = [
            f"{len(self.cameras)} cameras of {self.width} x {self.height} at {self.rate_hz:g} Hz "
            f"for {self.seconds:.0f} s: {self.bundle}",
            f"{self.machine}, load {self.load:.1f}",
        ]
        for name, camera in self.cameras.items():
            lines.append(name)
            lines += [f"  {key:<16}{_text(value)}" for key, value in asdict(camera).items()]
        lines.append(f"served unequally by {self.unequal:.1%}")
        lines.append("memory MB       " + " ".join(f"{each:.0f}" for each in self.memory_mb))
        return "\n".join(lines) + "\n"


def bench_cameras(
    bundle: Bundle,
    options: PipelineOptions,
    size: tuple[int, int],
    *,
    cameras: int,
    rate_hz: float,
    seconds: float,
) -> CamerasFigures:
    """Let several cameras send to one node, and follow its diagnostics.

    Args:
        bundle: what the node runs.
        options: how.
        size: (H, W) of the pictures.
        cameras: number of cameras.
        rate_hz: frames per second of each.
        seconds: how long they send.

    Raises:
        SparseRefineError: a process failed, or nothing came.
    """
    names = [f"camera_{index + 1}" for index in range(cameras)]
    topics = ", ".join(f"/bench/{name}/image" for name in names)
    sent = max(1, round(rate_hz * seconds))
    isolate()
    configure_middleware()
    init_for_command()
    settings = node_parameters(bundle, options) | {
        "image_topics": f"[{topics}]",
        "diagnostics_period_s": _DIAGNOSTICS_PERIOD_S,
    }
    sender: dict[str, str | int | float | bool] = {
        "publish": f"[{topics}]",
        "rate_hz": float(rate_hz),
        "count": sent,
        "height": size[0],
        "width": size[1],
    }
    try:
        watcher = _Watcher(names)
        _run(watcher, settings, sender, seconds)
        watcher.destroy_node()
    finally:
        rclpy.try_shutdown()
    figures = {name: _figures(sent, watcher.values(name), watcher.ages[name]) for name in names}
    served = [each.processed for each in figures.values()]
    tenths = np.array_split(np.asarray(watcher.memory_mb), min(10, len(watcher.memory_mb)))
    return CamerasFigures(
        machine=describe_machine(),
        bundle=bundle.name,
        width=size[1],
        height=size[0],
        rate_hz=rate_hz,
        seconds=seconds,
        cameras=figures,
        unequal=(max(served) - min(served)) / max(1.0, float(np.mean(served))),
        memory_mb=[float(np.median(tenth)) for tenth in tenths],
        load=os.getloadavg()[0],
    )


def _run(
    watcher: _Watcher,
    settings: Mapping[str, str | int | float | bool],
    sender: Mapping[str, str | int | float | bool],
    seconds: float,
) -> None:
    spinner = SingleThreadedExecutor()
    spinner.add_node(watcher)
    with start_node("sparserefine_ros.ros.segment", parameters=settings, remaps={}) as segment:
        wait_until_active(spinner, watcher.status, segment)
        watcher.process_id = segment.pid
        with start_node("sparserefine_ros.ros.bench_peer", parameters=sender, remaps={}) as peer:
            processes = (segment, peer)
            if not spin_until(
                spinner, lambda: watcher.count("received") > 0, TIMEOUT_S, *processes
            ):
                raise SparseRefineError(f"no frame reaches the node:\n{segment.log()}")
            spin_for(spinner, seconds, *processes)
            watcher.sending = False
            spin_for(spinner, _SETTLE_S, *processes)
            if not spin_until(
                spinner, lambda: watcher.count("in_flight") == 0, TIMEOUT_S, *processes
            ):
                raise SparseRefineError(f"the node does not answer:\n{segment.log()}")
    spinner.shutdown()


class _Watcher(Node):
    """Listens to the labels, so that they are computed, and collects what diagnostics tell.

    Attributes:
        status: of the node.
        ages: by camera, for each processed frame its age, wait and processing time, milliseconds.
        memory_mb: resident memory of the node, once for each diagnostic while they send.
        sending: whether the cameras still send; ages are kept while they do, for a last frame waits
            for no newer one.
        process_id: of the node; None before it is known.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__("bench_cameras")
        self.status = NodeStatus()
        self.ages: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
        self.memory_mb: list[float] = []
        self.sending = True
        self.process_id: int | None = None
        for name in names:
            self.create_subscription(
                Image, f"/segment/{name}/labels", lambda message: None, qos_profile_sensor_data
            )
        self.create_subscription(DiagnosticArray, "/diagnostics", self._take, 10)

    def values(self, camera: str) -> Mapping[str, str]:
        """The last key-value pairs of a camera."""
        for name, values in self.status.values.items():
            if name.rpartition("camera ")[2] == camera:
                return values
        return {}

    def count(self, key: str) -> int:
        """The sum over the cameras."""
        return sum(int(self.values(camera).get(key, 0)) for camera in self.ages)

    def _take(self, message: DiagnosticArray) -> None:
        before = {camera: int(self.values(camera).get("processed", 0)) for camera in self.ages}
        self.status.take(message)
        if not self.sending:
            return
        for camera, ages in self.ages.items():
            values = self.values(camera)
            if int(values.get("processed", 0)) > before[camera] and "age_ms.last" in values:
                total, wait = (float(values[f"latency_ms.{x}.last"]) for x in ("total", "wait"))
                ages.append((float(values["age_ms.last"]), wait, total - wait))
        if self.process_id is not None and self.count("received"):
            self.memory_mb.append(resident_mb(self.process_id))


def resident_mb(process_id: int) -> float:
    """Resident memory of a process, without what it shares with others.

    Its shared memory holds messages in transit and grows to a fixed size by use.
    """
    status = Path(f"/proc/{process_id}/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1024


def _figures(
    sent: int, values: Mapping[str, str], ages: list[tuple[float, float, float]]
) -> CameraFigures:
    received, processed, dropped, rejected = (
        int(values[key]) for key in ("received", "processed", "dropped", "rejected")
    )
    lost_text = values["lost_in_middleware"]
    lost = int(lost_text) if lost_text.isdigit() else 0
    table = np.asarray(ages[_WARMUP:] or ages or [(np.nan, np.nan, np.nan)])
    age, wait, processing = table.T
    over = age - processing
    return CameraFigures(
        sent=sent,
        received=received,
        processed=processed,
        dropped=dropped,
        rejected=rejected,
        lost=lost,
        unexplained=abs(sent - received - lost) + abs(received - processed - dropped - rejected),
        processing_ms=float(np.median(processing)),
        wait_ms=_spread(wait),
        over_ms=_spread(over),
        over_20_ms=float(np.mean(over > 20.0)),
    )


def _spread(times: NDArray[np.float64]) -> tuple[float, float, float]:
    median, p95, most = np.percentile(times, (50, 95, 100))
    return float(median), float(p95), float(most)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return " ".join(f"{each:.1f}" for each in value) if isinstance(value, tuple) else str(value)
