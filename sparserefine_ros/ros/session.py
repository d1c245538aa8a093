# SPDX-License-Identifier: Apache-2.0
"""What exists from configure to cleanup: the model, the outputs, and the way of one frame."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sparserefine_ros.deadline import Reserve
from sparserefine_ros.dense.stage import DenseResult
from sparserefine_ros.image import check_image
from sparserefine_ros.records import Prediction
from sparserefine_ros.render import draw_overlay
from sparserefine_ros.ros.convert import compressed_to_rgb, image_to_rgb
from sparserefine_ros.ros.label_info import LabelInfo
from sparserefine_ros.ros.loading import Model
from sparserefine_ros.ros.parameters import NodeParameters
from sparserefine_ros.ros.publishers import Outputs, Wanted
from sparserefine_ros.ros.reports import UNWATCHED, FrameRecord, ModelInfo
from sparserefine_ros.ros.streams import Frame, Stream
from sparserefine_ros.ros.worker import Finish


class Session:
    """A configured node: decodes, segments and publishes the frames of its cameras.

    Args:
        node: owner of the publishers.
        model: bundle and pipeline, shared by the cameras.
        parameters: returns the node's parameters as they are now; asked once a frame.
        streams: the cameras.
        waiting: see `worker.LatestWorker.waiting`; asked where there is a deadline.
    """

    def __init__(
        self,
        node: LifecycleNode,
        model: Model,
        parameters: Callable[[], NodeParameters],
        streams: Sequence[Stream],
        waiting: Callable[[float], int],
    ) -> None:
        self.model = model
        reliability = parameters().output_reliability
        self._outputs = {
            stream: Outputs(node, stream.camera.prefix, reliability) for stream in streams
        }
        self._label_info = LabelInfo(node)
        self._clock, self._logger = node.get_clock(), node.get_logger()
        self._parameters, self._waiting = parameters, waiting
        self._reserve = Reserve()
        compressed = parameters().transport == "compressed"
        self.message_type = CompressedImage if compressed else Image
        self._to_rgb = compressed_to_rgb if compressed else image_to_rgb

    def process(self, frames: Sequence[Frame]) -> list[Finish]:
        """Decode frames of different cameras and run the dense model on them, together.

        Returns:
            for each frame what refines it and publishes what is subscribed to, or says why it was
            dropped or not accepted; see `worker.Finish`.
        """
        parameters = self._parameters()
        works: list[_Work] = []
        finishes: list[Finish] = []
        for frame in frames:
            wanted = self._outputs[frame.stream].wanted()
            if not wanted:
                finishes.append(_unwatched)
                continue
            try:
                work = self._decode(frame, wanted, parameters)
            except Exception as err:  # it concerns this frame alone
                finishes.append(functools.partial(_raise, err))
                continue
            works.append(work)
            finishes.append(functools.partial(self._finish, work))
        for after, work in enumerate(reversed(works)):
            work.after = after
        if works:
            self._look(works)
        return finishes

    def _look(self, works: Sequence[_Work]) -> None:
        """Let the dense model look at frames together, and at each alone where that fails."""
        try:
            found = self.model.pipeline.run_dense([work.rgb for work in works])
        except Exception as err:
            if len(works) == 1:
                works[0].found = err
            else:
                for work in works:
                    self._look([work])
            return
        for work, each in zip(works, found, strict=True):
            work.found = each

    def _decode(self, frame: Frame, wanted: Wanted, parameters: NodeParameters) -> _Work:
        watch = _Stopwatch(frame.arrived_s)
        watch.lap("wait")
        rgb = self._to_rgb(frame.message, max_pixels=int(parameters.max_image_megapixels * 1e6))
        check_image(rgb)
        watch.lap("decode")
        return _Work(frame, wanted, parameters, watch, rgb)

    def _finish(self, work: _Work) -> None:
        """Refine a frame, publish it and remember how it went."""
        watch, rgb, wanted, header = work.watch, work.rgb, work.wanted, work.frame.message.header
        found = work.found
        assert found is not None
        if isinstance(found, Exception):
            raise found
        watch.skip()  # the pipeline times its own stages, and others had their turn
        prediction = self.model.pipeline.refine(
            rgb, found, wanted.computed, time_left_ms=self._time_left_ms(work, found)
        )
        watch.skip()
        overlay = None
        if wanted.overlay and prediction.labels is not None:
            overlay = draw_overlay(
                rgb,
                prediction.labels,
                self.model.bundle.palette,
                refined=prediction.refined,
                opacity=work.parameters.overlay_opacity,
            )
        watch.lap("overlay")
        self._outputs[work.frame.stream].publish(prediction, overlay, wanted, header)
        watch.lap("publish")
        self._reserve.learn(watch.milliseconds["overlay"] + watch.milliseconds["publish"])
        self._remember(work, prediction)

    def _remember(self, work: _Work, prediction: Prediction) -> None:
        watch, stream = work.watch, work.frame.stream
        stage_ms = {**watch.milliseconds, **prediction.times.milliseconds}
        # Whatever else passed, passed while others of the batch had their turn.
        stage_ms["wait"] += max(0.0, watch.total_ms - sum(stage_ms.values()))
        record = FrameRecord(
            size=prediction.size,
            stage_ms=stage_ms,
            total_ms=watch.total_ms,
            age_ms=self._age_ms(work.frame.message.header),
            refined_pixels=prediction.refined_pixels,
            refined_share=prediction.refined_share,
            budget_hit=prediction.budget_hit,
            affordable_pixels=prediction.affordable_pixels,
            unrefined=prediction.unrefined,
            batch=prediction.batch,
            budget_ms=work.parameters.latency_budget_ms,
        )
        if stream.history.add(record):
            height, width = prediction.size
            self._logger.info(f"{stream.topic}: the pictures' size changed to {width} x {height}")

    def _time_left_ms(self, work: _Work, found: DenseResult) -> float | None:
        """A frame's share of the time until its deadline; None without one.

        Frames of other cameras that are to end by about the same time have theirs: those behind it
        in the batch, and those that wait, which the dense model has yet to look at.
        """
        budget_ms = work.parameters.latency_budget_ms
        if not budget_ms:
            return None
        left_ms = budget_ms - work.watch.total_ms
        others = self._waiting(1e-3 * left_ms)
        left_ms -= others * (work.watch.milliseconds["decode"] + found.times.total_ms)
        return left_ms / (1 + work.after + others) - self._reserve.milliseconds

    def subscribed(self, stream: Stream) -> frozenset[str]:
        """Names of the outputs of a camera that have a subscriber now."""
        return self._outputs[stream].wanted().names

    def publish_label_info(self) -> None:
        """Publish the names of the labels, for late subscribers too."""
        header = Header(stamp=self._clock.now().to_msg())
        self._label_info.publish(self.model.bundle.class_names, header)

    def destroy(self) -> None:
        """Take the publishers away from the node."""
        for outputs in self._outputs.values():
            outputs.destroy()
        self._label_info.destroy()

    def describe_model(self) -> ModelInfo:
        """What is loaded, for the diagnostics."""
        bundle, pipeline = self.model.bundle, self.model.pipeline
        return ModelInfo(
            bundle=bundle.name,
            digest=bundle.digest,
            backends=pipeline.backends,
            selector=pipeline.selector.kind,
            threshold=pipeline.selector.threshold,
            max_refined_pixels=pipeline.selector.max_pixels,
        )

    def _age_ms(self, header: Header) -> float | None:
        # Not rclpy's Time, which refuses the negative stamps that some drivers send.
        stamp_ns = header.stamp.sec * 10**9 + header.stamp.nanosec
        return (self._clock.now().nanoseconds - stamp_ns) / 1e6 if stamp_ns else None


@dataclass
class _Work:
    """A frame on its way, from its decoding to its publication.

    Attributes:
        frame: the message.
        wanted: the outputs that have a subscriber.
        parameters: of the node, when it was taken.
        watch: runs since its arrival.
        rgb: uint8 [H, W, 3].
        after: frames of its batch that are refined after it.
        found: what the dense model says, once it has looked, or why it could not.
    """

    frame: Frame
    wanted: Wanted
    parameters: NodeParameters
    watch: _Stopwatch
    rgb: NDArray[np.uint8]
    after: int = 0
    found: DenseResult | Exception | None = None


def _unwatched() -> str:
    return UNWATCHED


def _raise(error: Exception) -> None:
    raise error


class _Stopwatch:
    """Lap times in milliseconds since `start_s` on `time.perf_counter`."""

    def __init__(self, start_s: float) -> None:
        self._start_s = self._last_s = start_s
        self.milliseconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now_s = time.perf_counter()
        self.milliseconds[name] = 1e3 * (now_s - self._last_s)
        self._last_s = now_s

    def skip(self) -> None:
        self._last_s = time.perf_counter()

    @property
    def total_ms(self) -> float:
        return 1e3 * (self._last_s - self._start_s)
