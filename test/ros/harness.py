# SPDX-License-Identifier: Apache-2.0
"""A peer that plays the camera, a fake model, and the threads that spin the nodes of a test."""

from __future__ import annotations

import array
import gc
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from sparserefine_ros.pipeline import Pipeline
from sparserefine_ros.records import STAGES, Map, Prediction, StageTimes, Uncertainty
from sparserefine_ros.ros.loading import Model, load_model
from sparserefine_ros.ros.node import SegmentNode
from sparserefine_ros.selectors import EntropySelector


def wait_until(met: Callable[[], Any], what: str, timeout_s: float = 10.0) -> None:
    """Poll until `met()` is true; fail with `what` after the time limit."""
    deadline = time.monotonic() + timeout_s
    while not met():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s in vain for: {what}")
        time.sleep(0.001)


def ask_until_answered(ask: Callable[[], Any], what: str, attempts: int = 5) -> Any:
    """Result of the future that `ask()` returns; `ask` may be repeated.

    A service's first answer can get lost while both ends are still finding each other.
    """
    for _ in range(attempts):
        future = ask()
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            if future.done():
                return future.result()
            time.sleep(0.001)
    pytest.fail(f"no answer to {what} in {attempts} attempts")


class FakePipeline:
    """Shaped like `Pipeline`: label = red // 100, everything else constant."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.error: Exception | None = None
        self.asked: list[frozenset[Map]] = []
        self.deadlines_ms: list[float | None] = []
        self.batches: list[int] = []
        self.backends = {"dense": "fake", "sparse": "fake"}
        self.selector = EntropySelector(0.6, 1000)
        self.bundle = fake_bundle()
        self._bundle_threshold, self._bundle_budget = 0.6, 1000

    entropy_threshold = Pipeline.entropy_threshold
    max_refined_pixels = Pipeline.max_refined_pixels

    def run_dense(self, images: Sequence[np.ndarray]) -> list[Any]:
        self.batches.append(len(images))
        times = StageTimes({"dense": 10.0})
        return [SimpleNamespace(batch=len(images), times=times) for _ in images]

    def refine(
        self,
        image: np.ndarray,
        found: Any,
        maps: frozenset[Map],
        *,
        time_left_ms: float | None = None,
    ) -> Prediction:
        self.asked.append(maps)
        self.deadlines_ms.append(time_left_ms)
        time.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        height, width = image.shape[:2]
        refined = np.zeros((height, width), np.bool_)
        refined[0] = True
        return Prediction(
            labels=image[..., 0] // 100 if Map.LABELS in maps else None,
            entropy=np.full((height, width), 0.5, np.float32) if Map.ENTROPY in maps else None,
            confidence=np.full((height, width), 200, np.uint8) if Map.CONFIDENCE in maps else None,
            refined=refined if Map.REFINED in maps else None,
            dense_labels=None,
            dense=Uncertainty(torch.empty(0, 0), torch.empty(0, 0), torch.empty(0, 0)),
            size=(height, width),
            low_res_size=(height // 2, width // 2),
            refined_pixels=width,
            candidate_pixels=2 * width,
            budget_hit=True,
            affordable_pixels=None if time_left_ms is None else max(0, int(100 * time_left_ms)),
            unrefined="",
            batch=found.batch,
            times=StageTimes(dict.fromkeys(STAGES, 1.5)),
        )


def fake_bundle() -> Any:
    """Shaped like `Bundle`, with three classes."""
    return SimpleNamespace(
        name="fake",
        digest="ab" * 32,
        class_names=("road", "car", "sky"),
        palette=np.zeros((256, 3), np.uint8),
    )


class Peer(Node):
    """The other side: a camera, subscribers and a parameter client, in a context of its own."""

    def __init__(self, context: Context) -> None:
        super().__init__("peer", context=context)
        self.received: dict[str, list[Any]] = {}
        self.diagnostics: list[Any] = []
        self._cameras: dict[str, Any] = {}
        self._parameters_of_node: AsyncParameterClient | None = None
        self.create_subscription(
            DiagnosticArray, "/diagnostics", lambda m: self.diagnostics.extend(m.status), 10
        )

    def open_camera(
        self, kind: Any = Image, *, reliable: bool = False, topic: str = "image"
    ) -> None:
        """Publish pictures of type `kind` on `topic`."""
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        self._cameras[topic] = self.create_publisher(
            kind, topic, QoSProfile(depth=10, reliability=reliability)
        )

    def watch(self, *outputs: str) -> None:
        """Collect the messages of some outputs of the node."""
        for name in outputs:
            messages = self.received.setdefault(name, [])
            kind = CompressedImage if name.endswith("compressed") else Image
            self.create_subscription(kind, f"segment/{name}", messages.append, 10)

    def connected(self, node: Node, outputs: Sequence[str] = ()) -> bool:
        """Whether both ends of each camera's topic and of each output have found each other."""
        cameras = (camera.topic_name for camera in self._cameras.values())
        topics = {*cameras, *(f"/segment/{name}" for name in outputs)}

        def matched(member: Node) -> set[str]:
            heard = {p.topic_name for p in member.publishers if p.get_subscription_count() > 0}
            fed = {s.topic_name for s in member.subscriptions if s.get_publisher_count() > 0}
            return heard | fed

        return topics <= matched(self) and topics <= matched(node)

    def send(self, message: Any, topic: str = "image") -> None:
        """Publish a picture."""
        self._cameras[topic].publish(message)

    def status(self, name: str) -> dict[str, str]:
        """Key-value pairs of the last diagnostic with this name, and its level and message."""
        found = [status for status in self.diagnostics if status.name == name]
        if not found:
            return {}
        values = {pair.key: pair.value for pair in found[-1].values}
        return values | {"level": str(ord(found[-1].level)), "message": found[-1].message}

    def set_parameters_of_node(self, **values: Any) -> list[Any]:
        """Set all of `values` atomically through the node's services; the result is a list of 1."""
        if self._parameters_of_node is None:
            self._parameters_of_node = AsyncParameterClient(self, "segment")
        client = self._parameters_of_node
        assert client.wait_for_services(5.0)
        changes = [Parameter(name, value=value) for name, value in values.items()]
        answer = ask_until_answered(
            lambda: client.set_parameters_atomically(changes), "set_parameters_atomically"
        )
        return [answer.result]


class Stage:
    """Nodes of a test, each spun by a thread of its own in a context of its own."""

    def __init__(self) -> None:
        self._running: list[tuple[Context, SingleThreadedExecutor, threading.Thread, Node]] = []

    def add(self, make: Callable[[Context], Node]) -> Any:
        """Create a node and spin it."""
        context = Context()
        rclpy.init(context=context)
        node = make(context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        thread = threading.Thread(target=self._spin, args=(executor,), daemon=True)
        thread.start()
        self._running.append((context, executor, thread, node))
        return node

    @staticmethod
    def _spin(executor: SingleThreadedExecutor) -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            return

    def clear(self) -> None:
        """Stop everything."""
        if not self._running:
            return
        for _, executor, thread, node in reversed(self._running):
            executor.shutdown(timeout_sec=5.0)
            thread.join(5.0)
            if hasattr(node, "close"):
                node.close()
            node.destroy_node()
        del node, executor
        contexts = [context for context, *_ in self._running]
        self._running.clear()
        gc.collect()  # what is left of nodes goes before the middleware does
        for context in contexts:
            context.try_shutdown()


def make_node(stage: Stage, load: Callable[..., Model] = load_model, **parameters: Any) -> Any:
    """A spinning SegmentNode with these parameters."""
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    return stage.add(
        lambda context: SegmentNode(load=load, context=context, parameter_overrides=overrides)
    )


def make_fake_node(stage: Stage, pipeline: FakePipeline, **parameters: Any) -> Any:
    """The same around a fake pipeline."""
    model = Model(pipeline.bundle, pipeline)
    return make_node(stage, lambda *_: model, **parameters)


def picture_message(picture: np.ndarray, second: int = 1) -> Image:
    height, width = picture.shape[:2]
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.header.frame_id = "camera_optical"
    message.header.stamp.sec, message.header.stamp.nanosec = second, 123456789
    message.data = array.array("B", picture.tobytes())
    return message


def exchange(peer: Peer, node: Any, message: Any, *outputs: str) -> list[Any]:
    """Send one picture; return the message of each output."""
    wait_until(lambda: peer.connected(node, outputs), f"connections of {outputs}")
    before = {name: len(peer.received[name]) for name in outputs}
    processed = node.counts.processed
    peer.send(message)
    wait_until(lambda: node.counts.processed == processed + 1, "the frame to be processed")
    for name in outputs:
        wait_until(
            lambda name=name: len(peer.received[name]) > before[name], f"a message on {name}"
        )
    return [peer.received[name][-1] for name in outputs]
