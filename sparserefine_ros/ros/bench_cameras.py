# SPDX-License-Identifier: Apache-2.0
"""Several cameras that are faster than the node: ages, fairness, counters and memory over time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
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
from sparserefine_ros.ros.processes import NodeProcess, isolate, start_node
from sparserefine_ros.ros.stopping import init_for_command

_DIAGNOSTICS_PERIOD_S: Final = 0.1
_SETTLE_S: Final = 5.0
_TIMEOUT_S: Final = 60.0
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
        with start_node("sparserefine_ros.ros.segment", parameters=settings, remaps={}) as segment:
            watcher = _Watcher(names)
            watcher.spin(lambda: watcher.active, _TIMEOUT_S, segment)
            with start_node(
                "sparserefine_ros.ros.bench_peer", parameters=sender, remaps={}
            ) as peer:
                watcher.spin(lambda: watcher.received > 0, _TIMEOUT_S, segment, peer)
                end_s = time.monotonic() + seconds
                watcher.spin(lambda: time.monotonic() > end_s, 2 * seconds + 60, segment, peer)
                watcher.sending = False
                settled_s = time.monotonic() + _SETTLE_S
                watcher.spin(
                    lambda: time.monotonic() > settled_s and watcher.in_flight == 0,
                    _TIMEOUT_S,
                    segment,
                    peer,
                )
            watcher.destroy_node()
    finally:
        rclpy.try_shutdown()
    figures = {name: _figures(sent, watcher.values[name], watcher.ages[name]) for name in names}
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


class _Watcher(Node):
    """Listens to the labels, so that they are computed, and collects what diagnostics tell.

    Attributes:
        active: whether the node is.
        values: the last key-value pairs of each camera.
        ages: by camera, for each processed frame its age, wait and processing time, milliseconds.
        memory_mb: resident memory of the node, once for each diagnostic while they send.
        sending: whether the cameras still send; ages are kept while they do, for a last frame waits
            for no newer one.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__("bench_cameras")
        self.active = False
        self.values: dict[str, dict[str, str]] = {name: {} for name in names}
        self.ages: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
        self.memory_mb: list[float] = []
        self.sending = True
        self._process: NodeProcess | None = None
        for name in names:
            self.create_subscription(
                Image, f"/segment/{name}/labels", lambda message: None, qos_profile_sensor_data
            )
        self.create_subscription(DiagnosticArray, "/diagnostics", self._take, 10)
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(self)

    @property
    def received(self) -> int:
        """Frames that the node has received."""
        return sum(int(values.get("received", 0)) for values in self.values.values())

    @property
    def in_flight(self) -> int:
        """Frames that the node has not done with."""
        return sum(int(values.get("in_flight", 0)) for values in self.values.values())

    def spin(self, met: Callable[[], bool], timeout_s: float, *processes: NodeProcess) -> None:
        """Spin until `met()`; the first process is the node under test."""
        self._process, end_s = processes[0], time.monotonic() + timeout_s
        while not met():
            self._spinner.spin_once(timeout_sec=0.1)
            for process in processes:
                process.check_running()
            if time.monotonic() > end_s:
                raise SparseRefineError(f"the node does not answer:\n{processes[0].log()}")

    def _take(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            name = status.name.rpartition("camera ")[2]
            self.active = self.active or values.get("state") == "active"
            if name in self.values:
                self._note(name, values)
        if self.sending and self.received and self._process is not None:
            self.memory_mb.append(resident_mb(self._process.pid))

    def _note(self, name: str, values: Mapping[str, str]) -> None:
        before = int(self.values[name].get("processed", 0))
        self.values[name] = dict(values)
        if self.sending and int(values["processed"]) > before and "age_ms.last" in values:
            total, wait = (float(values[f"latency_ms.{each}.last"]) for each in ("total", "wait"))
            self.ages[name].append((float(values["age_ms.last"]), wait, total - wait))


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
