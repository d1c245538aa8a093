# SPDX-License-Identifier: Apache-2.0
"""What exists from configure to cleanup: the model, the outputs, and the way of one frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sparserefine_ros.deadline import Reserve
from sparserefine_ros.render import draw_overlay
from sparserefine_ros.ros.convert import compressed_to_rgb, image_to_rgb
from sparserefine_ros.ros.label_info import LabelInfo
from sparserefine_ros.ros.loading import Model
from sparserefine_ros.ros.parameters import NodeParameters
from sparserefine_ros.ros.publishers import Outputs
from sparserefine_ros.ros.reports import UNWATCHED, FrameRecord, ModelInfo
from sparserefine_ros.ros.streams import Frame, Stream


class Session:
    """A configured node: decodes, segments and publishes the frames of its cameras.

    Args:
        node: owner of the publishers.
        model: bundle and pipeline, shared by the cameras.
        parameters: returns the node's parameters as they are now; asked once a frame.
        streams: the cameras.
    """

    def __init__(
        self,
        node: LifecycleNode,
        model: Model,
        parameters: Callable[[], NodeParameters],
        streams: Sequence[Stream],
    ) -> None:
        self.model = model
        reliability = parameters().output_reliability
        self._outputs = {
            stream: Outputs(node, stream.camera.prefix, reliability) for stream in streams
        }
        self._label_info = LabelInfo(node)
        self._clock, self._logger = node.get_clock(), node.get_logger()
        self._parameters = parameters
        self._reserve = Reserve()
        compressed = parameters().transport == "compressed"
        self.message_type = CompressedImage if compressed else Image
        self._to_rgb = compressed_to_rgb if compressed else image_to_rgb

    def process(self, frame: Frame) -> str | None:
        """Segment one frame and publish what is subscribed to.

        Returns:
            None when it was processed, or the reason why it was dropped.

        Raises:
            ImageError: the message holds no usable picture.
            ModelOutputError: the model returned something unusable.
        """
        outputs = self._outputs[frame.stream]
        wanted = outputs.wanted()
        if not wanted:
            return UNWATCHED
        parameters, header = self._parameters(), frame.message.header
        watch = _Stopwatch(frame.arrived_s)
        watch.lap("wait")
        rgb = self._to_rgb(frame.message, max_pixels=int(parameters.max_image_megapixels * 1e6))
        watch.lap("decode")
        prediction = self.model.pipeline(
            rgb, wanted.computed, time_left_ms=self._time_left_ms(watch, parameters)
        )
        watch.skip()  # the pipeline times its own stages
        overlay = None
        if wanted.overlay and prediction.labels is not None:
            overlay = draw_overlay(
                rgb,
                prediction.labels,
                self.model.bundle.palette,
                refined=prediction.refined,
                opacity=parameters.overlay_opacity,
            )
        watch.lap("overlay")
        outputs.publish(prediction, overlay, wanted, header)
        watch.lap("publish")
        self._reserve.learn(watch.milliseconds["overlay"] + watch.milliseconds["publish"])
        record = FrameRecord(
            size=prediction.size,
            stage_ms={**watch.milliseconds, **prediction.times.milliseconds},
            total_ms=watch.total_ms,
            age_ms=self._age_ms(header),
            refined_pixels=prediction.refined_pixels,
            refined_share=prediction.refined_share,
            budget_hit=prediction.budget_hit,
            affordable_pixels=prediction.affordable_pixels,
            unrefined=prediction.unrefined,
        )
        if frame.stream.history.add(record):
            height, width = prediction.size
            self._logger.info(f"{frame.stream.topic}: {width} x {height} pictures from now on")
        return None

    def _time_left_ms(self, watch: _Stopwatch, parameters: NodeParameters) -> float | None:
        budget_ms = parameters.latency_budget_ms
        return budget_ms - watch.total_ms - self._reserve.milliseconds if budget_ms else None

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
