# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from numpy.typing import NDArray
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros.harness import Stage, wait_until
from sensor_msgs.msg import CompressedImage, Image

from sparserefine_ros.errors import ConfigurationError, ImageError
from sparserefine_ros.ros import camera
from sparserefine_ros.ros.camera import CameraNode
from sparserefine_ros.ros.processes import NodeProcess, start_node
from sparserefine_ros.sources import Frame

MODULE = "sparserefine_ros.ros.camera"


class Listener(Node):
    """Collects what comes on `image`, with its arrival on time.monotonic."""

    def __init__(self, context: Context, kind: Any = Image) -> None:
        super().__init__("listener", context=context)
        self.messages: list[Any] = []
        self.arrivals_s: list[float] = []
        qos = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(kind, "image", self._take, qos)

    def _take(self, message: Any) -> None:
        self.arrivals_s.append(time.monotonic())
        self.messages.append(message)


class Slow:
    """A source that needs 50 ms for each of its five frames."""

    length: int | None = 5
    fps = 100.0

    def __iter__(self) -> Iterator[Frame]:
        for index in range(5):
            time.sleep(0.05)
            yield Frame(str(index), np.zeros((4, 4, 3), np.uint8))


@pytest.fixture
def pictures(tmp_path: Path) -> list[NDArray[np.uint8]]:
    """Three random pictures, uint8 RGB, written to tmp_path/pictures."""
    rng = np.random.default_rng(3)
    arrays = [rng.integers(0, 256, (21, 33, 3), np.uint8) for _ in range(3)]
    (tmp_path / "pictures").mkdir()
    for index, array in enumerate(arrays):
        cv2.imwrite(str(tmp_path / "pictures" / f"{index}.png"), array[..., ::-1])
    return arrays


def make_camera(context: Context, **parameters: Any) -> CameraNode:
    """A camera node that is not spun from outside."""
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    return CameraNode(context=context, parameter_overrides=overrides)


@pytest.fixture
def context() -> Iterator[Context]:
    """An initialised context."""
    made = Context()
    rclpy.init(context=made)
    yield made
    made.try_shutdown()


def play(context: Context, stop: threading.Event | None = None, **parameters: Any) -> int:
    """Make a camera, play it to its end and take it down."""
    node = make_camera(context, **parameters)
    try:
        return node.play(stop or threading.Event())
    finally:
        node.close()
        node.destroy_node()


def image_pixels(message: Image) -> NDArray[np.uint8]:
    assert (message.encoding, message.is_bigendian) == ("rgb8", 0)
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    return rows[:, : 3 * message.width].reshape(message.height, message.width, 3)


def assert_same_pictures(messages: Sequence[Image], expected: Sequence[NDArray[np.uint8]]) -> None:
    assert len(messages) == len(expected)
    for message, picture in zip(messages, expected, strict=True):
        np.testing.assert_array_equal(image_pixels(message), picture)


def wait_for_end(node: NodeProcess) -> int | None:
    wait_until(lambda: node.exit_code is not None, "the end of the camera", 20.0)
    return node.exit_code


class TestProcess:
    def test_a_folder_arrives_whole_and_in_order_and_the_node_ends_by_itself(
        self, stage: Stage, tmp_path: Path, pictures: list[NDArray[np.uint8]]
    ) -> None:
        listener = stage.add(Listener)
        settings = {"source": str(tmp_path / "pictures"), "rate_hz": 50, "frame_id": "front"}
        before_s = time.time()
        with start_node(MODULE, parameters=settings, remaps={}) as node:
            assert wait_for_end(node) == 0, node.log()
        assert_same_pictures(listener.messages, pictures)
        headers = [message.header for message in listener.messages]
        stamps = [header.stamp.sec + header.stamp.nanosec * 1e-9 for header in headers]
        assert {header.frame_id for header in headers} == {"front"}
        assert stamps == sorted(set(stamps))
        assert before_s < stamps[0] < stamps[-1] < time.time()

    def test_a_broken_picture_ends_it_with_code_1_after_the_good_ones(
        self, stage: Stage, tmp_path: Path, pictures: list[NDArray[np.uint8]]
    ) -> None:
        (tmp_path / "pictures" / "1.png").write_bytes(b"broken")
        listener = stage.add(Listener)
        settings = {"source": str(tmp_path / "pictures"), "rate_hz": 50.0}
        with start_node(MODULE, parameters=settings, remaps={}) as node:
            assert wait_for_end(node) == 1
            assert "1.png: expected an intact encoded picture" in node.log()
            assert "Traceback" not in node.log()
        assert_same_pictures(listener.messages, pictures[:1])

    def test_a_missing_source_ends_it_with_code_1_and_a_clear_text(self) -> None:
        with start_node(MODULE, parameters={"source": "/nowhere"}, remaps={}) as node:
            assert wait_for_end(node) == 1
            assert "no file or folder '/nowhere'" in node.log()
            assert "Traceback" not in node.log()

    def test_it_ends_well_when_interrupted_while_it_waits(self) -> None:
        with start_node(MODULE, parameters={"source": "street:1:64x32"}, remaps={}) as node:
            wait_until(
                lambda: "waiting for subscribers on /image, 1 in all" in node.log(), "start", 20.0
            )
            assert node.exit_code is None
            node.stop()
            assert node.exit_code == 0
            assert "published 0 pictures" in node.log()


class TestPlay:
    def test_jpeg_messages_hold_the_picture(
        self, stage: Stage, context: Context, tmp_path: Path
    ) -> None:
        picture = np.full((32, 48, 3), (200, 60, 20), np.uint8)
        cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
        listener = stage.add(lambda context: Listener(context, CompressedImage))
        assert play(context, source=str(tmp_path / "a.png"), transport="compressed") == 1
        (message,) = listener.messages
        assert message.format == "rgb8; jpeg compressed bgr8"
        decoded = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_allclose(decoded[..., ::-1], picture, atol=4)

    def test_loop_starts_again_until_the_count(
        self, stage: Stage, context: Context, tmp_path: Path, pictures: list[NDArray[np.uint8]]
    ) -> None:
        listener = stage.add(Listener)
        folder = str(tmp_path / "pictures")
        assert play(context, source=folder, loop=True, count=8, rate_hz=100.0) == 8
        assert_same_pictures(
            listener.messages, list(itertools.islice(itertools.cycle(pictures), 8))
        )

    def test_the_count_ends_an_endless_source(self, context: Context) -> None:
        settings = {"rate_hz": 1000.0, "wait_for_subscribers": 0}
        assert play(context, source="street:1:64x32", count=3, **settings) == 3

    @pytest.mark.parametrize(
        ("asked", "got"),
        [
            ({}, (21, 33)),
            ({"width": 66}, (42, 66)),
            ({"height": 7}, (7, 11)),
            ({"width": 10, "height": 40}, (40, 10)),
        ],
    )
    def test_pictures_are_resized(
        self,
        stage: Stage,
        context: Context,
        tmp_path: Path,
        asked: dict[str, int],
        got: tuple[int, int],
    ) -> None:
        ramp = np.linspace(0, 250, 33, dtype=np.uint8)[None, :, None].repeat(21, 0).repeat(3, 2)
        cv2.imwrite(str(tmp_path / "a.png"), ramp)
        listener = stage.add(Listener)
        play(context, source=str(tmp_path / "a.png"), **asked)
        (message,) = listener.messages
        pixels = image_pixels(message)
        assert pixels.shape == (*got, 3)
        centres = (np.arange(got[1]) + 0.5) / got[1] * 33 - 0.5
        expected = np.interp(centres, np.arange(33), ramp[0, :, 0])
        np.testing.assert_allclose(pixels[got[0] // 2, :, 0], expected, atol=4)

    def test_frames_come_at_the_rate(
        self, stage: Stage, context: Context, tmp_path: Path, pictures: list[NDArray[np.uint8]]
    ) -> None:
        listener = stage.add(Listener)
        play(context, source=str(tmp_path / "pictures"), rate_hz=10.0)
        gaps_s = np.diff(listener.arrivals_s)
        # A busy machine delays single frames, but none may come early.
        assert 0.19 < gaps_s.sum() < 2.0

    def test_a_slow_source_is_published_as_it_comes_and_reported_once(
        self,
        stage: Stage,
        context: Context,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(camera, "open_source", lambda _: Slow())
        listener = stage.add(Listener)
        assert play(context) == 5
        assert len(listener.messages) == 5
        assert np.diff(listener.arrivals_s).sum() < 1.0
        assert capfd.readouterr().err.count("gives fewer than 100 frames per second") == 1

    def test_the_first_frame_waits_for_a_subscriber(self, stage: Stage, context: Context) -> None:
        stop = threading.Event()
        node = make_camera(context, source="street:1:64x32", count=2, rate_hz=100.0)
        published: list[int] = []
        thread = threading.Thread(target=lambda: published.append(node.play(stop)))
        thread.start()
        time.sleep(0.5)
        assert not published
        listener = stage.add(Listener)
        thread.join(10.0)
        node.close()
        node.destroy_node()
        assert published == [2]
        assert len(listener.messages) == 2

    def test_stop_ends_it_between_two_frames(
        self, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop, publish = threading.Event(), camera.CameraNode._publish

        def publish_and_stop(node: camera.CameraNode, picture: Any) -> None:
            publish(node, picture)
            threading.Timer(0.3, stop.set).start()

        monkeypatch.setattr(camera.CameraNode, "_publish", publish_and_stop)
        start_s = time.monotonic()
        # The second frame would be due after 50 s; a busy machine may take some for the first.
        settings = {"wait_for_subscribers": 0, "rate_hz": 0.02}
        assert play(context, stop, source="street:1:64x32", **settings) == 1
        assert time.monotonic() - start_s < 25.0


class TestParameters:
    def test_every_parameter_is_described_and_read_only(self, context: Context) -> None:
        node = make_camera(context, source="street:1:64x32")
        for spec in camera.PARAMETERS:
            descriptor = node.describe_parameter(spec.name)
            assert descriptor.description == spec.description
            assert descriptor.read_only
        (result,) = node.set_parameters([Parameter("rate_hz", value=3.0)])
        assert not result.successful
        node.close()
        node.destroy_node()

    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            ("rate_hz", -1.0, r"rate_hz: expected float 0 \.\. 1000, got -1\.0"),
            ("rate_hz", float("nan"), r"rate_hz: .*got nan"),
            ("rate_hz", "fast", r"rate_hz: expected float .*got 'fast'"),
            ("count", -1, r"count: expected int 0 \.\. 1000000000, got -1"),
            ("width", 20000, r"width: expected int 0 \.\. 16384"),
            ("transport", "theora", r"transport: expected str raw or compressed, got 'theora'"),
            ("loop", 1, r"loop: expected bool, got 1"),
            ("source", 7, r"source: expected str, got 7"),
        ],
    )
    def test_impossible_values_are_named(
        self, context: Context, name: str, value: object, text: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=text):
            make_camera(context, **{name: value})

    def test_all_mistakes_come_at_once(self, context: Context) -> None:
        with pytest.raises(ConfigurationError, match=r"rate_hz: .*; count: "):
            make_camera(context, rate_hz=-1.0, count=-1)

    def test_a_malformed_source_is_refused_before_anything_is_published(
        self, context: Context
    ) -> None:
        with pytest.raises(ImageError, match=r"expected street"):
            make_camera(context, source="street:x")
