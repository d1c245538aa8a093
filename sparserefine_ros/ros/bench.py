# SPDX-License-Identifier: Apache-2.0
"""Times the node from outside: a picture message goes in, its labels message comes back."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from tqdm import tqdm

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import SparseRefineError
from sparserefine_ros.evaluation.bench import Figures, street_pictures
from sparserefine_ros.evaluation.measure import Spread, describe_machine, peak_memory_mb
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import Prediction
from sparserefine_ros.ros.convert import array_to_image
from sparserefine_ros.ros.middleware import configure_middleware
from sparserefine_ros.ros.processes import NodeProcess, isolate, start_node
from sparserefine_ros.ros.stopping import init_for_command
from sparserefine_ros.ros.watching import TIMEOUT_S, spin_until


def bench_node(
    bundle: Bundle, options: PipelineOptions, size: tuple[int, int], *, frames: int, warmup: int
) -> Figures:
    """Time a segmentation node in a process of its own, and the bare pipeline in turn with it.

    Args:
        bundle: what is timed.
        options: how it is run.
        size: (H, W) of the pictures.
        frames: timed frames.
        warmup: frames before them.

    Raises:
        SparseRefineError: the node failed, or its labels are not the pipeline's.
    """
    pictures = street_pictures(size)
    pipeline = Pipeline(bundle, options)
    isolate()
    configure_middleware()
    init_for_command()
    try:
        with start_node(
            "sparserefine_ros.ros.segment",
            parameters=node_parameters(bundle, options),
            remaps={"image": "/bench/image"},
        ) as process:
            client = _Client(process)
            try:
                return _measure(client, pipeline, pictures, frames, warmup)
            finally:
                client.destroy_node()
    finally:
        rclpy.try_shutdown()


def node_parameters(
    bundle: Bundle, options: PipelineOptions
) -> dict[str, str | int | float | bool]:
    """The parameters of a node that runs `bundle` with these options."""
    parameters: dict[str, str | int | float | bool] = {
        "bundle": str(bundle.folder.resolve()),
        "backend": options.backend,
        "sparse_backend": options.sparse_backend,
        "device": options.device,
        "threads": options.threads,
        "dense_precision": options.engine.precision,
        "build_engines": options.engine.build,
        "max_batch": options.engine.max_batch,
    }
    if options.engine.cache is not None:
        parameters["engine_cache"] = str(options.engine.cache.resolve())
    if options.engine.picture_sizes:
        sizes = options.engine.picture_sizes
        parameters["picture_sizes"] = ",".join(f"{wide}x{high}" for high, wide in sizes)
    if options.entropy_threshold is not None:
        parameters["entropy_threshold"] = options.entropy_threshold
    if options.max_refined_pixels is not None:
        parameters["max_refined_pixels"] = options.max_refined_pixels
    return parameters


def _measure(
    client: _Client,
    pipeline: Pipeline,
    pictures: list[NDArray[np.uint8]],
    frames: int,
    warmup: int,
) -> Figures:
    client.wait_until_ready()
    for picture in pictures:
        expected = pipeline(picture).labels
        assert expected is not None
        if not np.array_equal(client.segment(picture), expected):
            raise SparseRefineError(
                "expected the node's labels to equal the pipeline's byte for byte, they differ; "
                "timings of wrong results mean nothing, so none were taken"
            )
    round_trips, bare = [], []
    predictions: list[Prediction] = []
    for index in tqdm(range(warmup + frames), unit="frame", desc="node"):
        picture = pictures[index % len(pictures)]
        start_s = time.perf_counter()
        client.segment(picture)
        back_s = time.perf_counter()
        predictions.append(pipeline(picture))
        end_s = time.perf_counter()
        if index >= warmup:
            round_trips.append((back_s - start_s) * 1e3)
            bare.append((end_s - back_s) * 1e3)
    overhead = [node - alone for node, alone in zip(round_trips, bare, strict=True)]
    height, width = pictures[0].shape[:2]
    return Figures(
        what="node, image message in to labels message out "
        f"({1e3 / float(np.median(round_trips)):.1f} frames/s one after the other)",
        machine=describe_machine(),
        bundle=pipeline.bundle.name,
        width=width,
        height=height,
        frames=frames,
        refined_share=float(np.mean([p.refined_share for p in predictions])),
        labels_equal=1.0,
        rows={
            "node round trip": Spread.of(round_trips),
            "bare pipeline": Spread.of(bare),
            "node overhead": Spread.of(overhead),
        },
        peak_memory_mb=peak_memory_mb(),
    )


class _Client(Node):
    """Sends a picture and waits for its labels."""

    def __init__(self, process: NodeProcess) -> None:
        super().__init__("bench")
        self._process = process
        self._labels: list[Image] = []
        self._publisher = self.create_publisher(Image, "/bench/image", qos_profile_sensor_data)
        self.create_subscription(
            Image, "/segment/labels", self._labels.append, qos_profile_sensor_data
        )
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(self)

    def wait_until_ready(self) -> None:
        """Wait until node and client have found each other."""
        self._spin_until(
            lambda: (
                self._publisher.get_subscription_count() > 0
                and self.count_publishers("/segment/labels") > 0
            )
        )
        # The subscription is matched on both sides a moment after it is counted here.
        end = time.monotonic() + 1.0
        self._spin_until(lambda: time.monotonic() > end)

    def segment(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Labels uint8 [H, W] of an RGB picture uint8 [H, W, 3], through the node."""
        self._labels.clear()
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id="bench")
        self._publisher.publish(array_to_image(picture, "rgb8", header))
        self._spin_until(lambda: bool(self._labels))
        message = self._labels[0]
        if message.header != header:
            raise SparseRefineError("expected labels with the header of the picture")
        return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width)

    def _spin_until(self, ready: Callable[[], bool]) -> None:
        if not spin_until(self._spinner, ready, TIMEOUT_S, self._process):
            raise SparseRefineError(
                f"nothing came back from the node within {TIMEOUT_S:.0f} s:\n{self._process.log()}"
            )
