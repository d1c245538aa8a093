# SPDX-License-Identifier: Apache-2.0
"""The way of frames through a session, on a clock that only the model and the outputs move."""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ros.harness import FakePipeline
from sensor_msgs.msg import Image

from sparserefine_ros.deadline import PixelCost
from sparserefine_ros.errors import ImageError, ModelOutputError
from sparserefine_ros.records import Prediction, StageTimes
from sparserefine_ros.ros import session as session_module
from sparserefine_ros.ros.cameras import Camera
from sparserefine_ros.ros.parameters import NodeParameters
from sparserefine_ros.ros.publishers import Wanted
from sparserefine_ros.ros.reports import UNWATCHED
from sparserefine_ros.ros.session import Session
from sparserefine_ros.ros.streams import Frame, Stream

DENSE_MS, PER_PIXEL_MS, PUBLISH_MS = 15.0, 0.5e-3, 1.0
UNSURE_PIXELS = 200_000


class VirtualTime:
    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def pass_ms(self, milliseconds: float) -> None:
        self.now_s += 1e-3 * milliseconds


class TimedPipeline(FakePipeline):
    """Takes its time on the virtual clock, and refines as many pixels as it can afford."""

    def __init__(self, clock: VirtualTime) -> None:
        super().__init__()
        self._clock, self._cost = clock, PixelCost()

    def run_dense(self, images: Sequence[np.ndarray]) -> list[Any]:
        if any(image.shape[0] > 12 for image in images):
            raise ModelOutputError("too high")
        self._clock.pass_ms(DENSE_MS)
        found = super().run_dense(images)
        for each in found:
            each.times = StageTimes({"dense": DENSE_MS})
        return found

    def refine(self, image: np.ndarray, *args: Any, **options: Any) -> Prediction:
        left_ms = options["time_left_ms"]
        pixels = UNSURE_PIXELS
        if left_ms is not None:
            pixels = min(pixels, self._cost.affordable(left_ms))
        taken_ms = 2.0 + PER_PIXEL_MS * pixels
        self._clock.pass_ms(taken_ms)
        self._cost.learn(pixels, taken_ms)
        prediction = super().refine(image, *args, **options)
        return dataclasses.replace(prediction, refined_pixels=pixels)


class SilentOutputs:
    """One subscriber of the labels, or none."""

    clock: VirtualTime

    def __init__(self, node: Any, prefix: str, reliability: str) -> None:
        self.names = frozenset() if "quiet" in prefix else frozenset({"labels"})
        self.published = 0

    def wanted(self) -> Wanted:
        return Wanted(self.names)

    def publish(self, *_: Any) -> None:
        self.clock.pass_ms(PUBLISH_MS)
        self.published += 1


class Rig:
    """A session of some cameras without ROS around it."""

    def __init__(self, names: Sequence[str], clock: VirtualTime, budget_ms: float) -> None:
        self.clock, self.waiting = clock, 0
        self.streams = [Stream(Camera(name, f"/{name}/image")) for name in names]
        now = SimpleNamespace(nanoseconds=0)
        node: Any = SimpleNamespace(
            get_clock=lambda: SimpleNamespace(now=lambda: now),
            get_logger=lambda: SimpleNamespace(info=lambda text: None),
        )
        pipeline = TimedPipeline(clock)
        model: Any = SimpleNamespace(pipeline=pipeline, bundle=pipeline.bundle)
        parameters = NodeParameters(latency_budget_ms=budget_ms)
        self.session = Session(
            node, model, lambda: parameters, self.streams, lambda within_s: self.waiting
        )

    def frames(self, **changes: Any) -> list[Frame]:
        """One of each camera, all of the same instant."""
        return [Frame(picture(**changes), self.clock.now_s, stream) for stream in self.streams]

    def history(self, index: int) -> list[Any]:
        """Records of a camera's frames, without those that the first ones taught."""
        return list(self.streams[index].history.snapshot().frames[10:])


def picture(height: int = 12, step: int = 60) -> Image:
    message = Image(height=height, width=20, encoding="rgb8", step=step)
    message.data = array.array("B", bytes(60 * height))
    return message


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    fake = VirtualTime()
    monkeypatch.setattr(session_module, "time", fake)
    monkeypatch.setattr(session_module, "Outputs", SilentOutputs)
    monkeypatch.setattr(session_module, "LabelInfo", lambda node: None)
    monkeypatch.setattr(SilentOutputs, "clock", fake, raising=False)
    return fake


class TestDeadline:
    @pytest.mark.parametrize("together", [True, False], ids=["one batch", "one by one"])
    @pytest.mark.parametrize("cameras", [1, 2, 3])
    def test_cameras_that_are_triggered_together_share_it(
        self, clock: VirtualTime, cameras: int, together: bool
    ) -> None:
        budget_ms = 40.0 + 30.0 * cameras
        rig = Rig([f"camera{i}" for i in range(cameras)], clock, budget_ms)
        for number in range(60):
            clock.now_s = 0.5 * number
            frames = rig.frames()
            for group in [frames] if together else [[frame] for frame in frames]:
                rig.waiting = 0 if together else len(frames) - frames.index(group[0]) - 1
                for finish in rig.session.process(group):
                    assert finish() is None
        medians = []
        for index in range(cameras):
            records = rig.history(index)
            assert all(record.total_ms <= budget_ms + 1e-6 for record in records)
            assert all(record.budget_ms == budget_ms for record in records)
            medians.append(np.median([record.refined_pixels for record in records]))
        assert min(medians) > 0.8 * max(medians)
        # The last of them is done when the time is nearly up.
        last = np.median([record.total_ms for record in rig.history(cameras - 1)])
        assert 0.9 * budget_ms < last

    def test_without_one_everything_is_refined(self, clock: VirtualTime) -> None:
        rig = Rig(["front", "rear"], clock, 0.0)
        for finish in rig.session.process(rig.frames()):
            finish()
        (record,) = rig.streams[1].history.snapshot().frames
        assert (record.refined_pixels, record.budget_ms) == (UNSURE_PIXELS, 0.0)


class TestBatch:
    def test_a_frame_that_the_model_refuses_spoils_no_other(self, clock: VirtualTime) -> None:
        rig = Rig(["front", "high", "broken", "quiet", "rear"], clock, 0.0)
        front, high, broken, quiet, rear = rig.frames()
        high = dataclasses.replace(high, message=picture(height=13))
        broken = dataclasses.replace(broken, message=picture(step=7))
        finishes = rig.session.process([front, high, broken, quiet, rear])
        assert finishes[0]() is None
        with pytest.raises(ModelOutputError, match="too high"):
            finishes[1]()
        with pytest.raises(ImageError, match="step"):
            finishes[2]()
        assert finishes[3]() == UNWATCHED
        assert finishes[4]() is None
        done = [len(stream.history.snapshot().frames) for stream in rig.streams]
        assert done == [1, 0, 0, 0, 1]

    def test_nothing_is_looked_at_for_nobody(self, clock: VirtualTime) -> None:
        rig = Rig(["quiet"], clock, 0.0)
        (finish,) = rig.session.process(rig.frames())
        assert finish() == UNWATCHED
        assert clock.now_s == 0.0
