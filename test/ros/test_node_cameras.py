# SPDX-License-Identifier: Apache-2.0
"""Several cameras in one node, over DDS: names, fairness, silence, and listeners that go."""

from __future__ import annotations

import array
import time
from typing import Any

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.parameter import Parameter
from ros.harness import FakePipeline, Peer, Stage, make_fake_node, wait_until
from sensor_msgs.msg import CompressedImage, Image

TOPICS = ["/front/image_raw", "/rear/image_raw"]
LEVELS = {name: str(ord(getattr(DiagnosticStatus, name))) for name in ("OK", "WARN", "STALE")}


def picture_message(red: int, second: int = 1, size: tuple[int, int] = (12, 20)) -> Image:
    picture = np.full((*size, 3), red, np.uint8)
    message = Image(height=size[0], width=size[1], encoding="rgb8", step=3 * size[1])
    message.header.frame_id = f"camera_{red}"
    message.header.stamp.sec = second
    message.data = array.array("B", picture.tobytes())
    return message


def open_cameras(peer: Peer, kind: type = Image) -> None:
    for topic in TOPICS:
        peer.open_camera(kind, topic=topic)


def test_each_camera_has_its_outputs_and_its_books(stage: Stage, peer: Peer) -> None:
    open_cameras(peer)
    peer.watch("front/labels", "rear/labels")
    node = make_fake_node(stage, FakePipeline(), image_topics=TOPICS, diagnostics_period_s=0.05)
    wait_until(lambda: peer.connected(node, ("front/labels", "rear/labels")), "connections")
    for red, topic in ((100, TOPICS[0]), (200, TOPICS[1]), (200, TOPICS[1])):
        processed = node.counts.processed
        peer.send(picture_message(red), topic)
        wait_until(lambda n=processed: node.counts.processed == n + 1, "the frame")
    wait_until(lambda: len(peer.received["rear/labels"]) == 2, "labels of the rear camera")
    (front,) = peer.received["front/labels"]
    assert (front.header.frame_id, set(front.data)) == ("camera_100", {1})
    assert {message.header.frame_id for message in peer.received["rear/labels"]} == {"camera_200"}
    assert set(peer.received["rear/labels"][0].data) == {2}

    def told() -> bool:
        whole, rear = peer.status("segment: segmentation"), peer.status("segment: camera rear")
        return (whole.get("processed"), rear.get("processed")) == ("3", "2")

    wait_until(told, "diagnostics of the last frame")
    whole, rear = peer.status("segment: segmentation"), peer.status("segment: camera rear")
    assert (whole["cameras"], whole["processed"]) == ("front, rear", "3")
    assert (rear["topic"], rear["processed"], rear["size"]) == (TOPICS[1], "2", "20 x 12")
    assert rear["subscribed"] == "labels"
    assert node.count_publishers("segment/labels") == 0


def test_cameras_are_served_equally_under_overload(stage: Stage, peer: Peer) -> None:
    open_cameras(peer)
    names = ("front/labels", "rear/labels")
    peer.watch(*names)
    node = make_fake_node(stage, FakePipeline(0.03), image_topics=TOPICS)
    wait_until(lambda: peer.connected(node, names), "connections")
    start_s = time.monotonic()
    for index in range(240):
        time.sleep(max(0.0, start_s + index * 0.008 - time.monotonic()))
        # The front camera is three times as fast as the rear one.
        peer.send(picture_message(100, index + 1), TOPICS[index % 4 == 3])
    wait_until(lambda: node.counts.in_flight == 0, "the last frame")
    front, rear = (node.counts_of(name) for name in ("front", "rear"))
    assert rear.processed >= 15
    assert abs(front.processed - rear.processed) <= 2
    for counts in (front, rear):
        dropped, rejected = sum(counts.dropped.values()), sum(counts.rejected.values())
        assert counts.received == counts.processed + dropped + rejected


@pytest.mark.parametrize("max_batch", [1, 2])
def test_frames_that_coincide_share_a_batch(stage: Stage, peer: Peer, max_batch: int) -> None:
    open_cameras(peer)
    names = ("front/labels", "rear/labels")
    peer.watch(*names)
    pipeline = FakePipeline(0.02)
    node = make_fake_node(
        stage,
        pipeline,
        image_topics=TOPICS,
        max_batch=max_batch,
        diagnostics_period_s=0.05,
    )
    wait_until(lambda: peer.connected(node, names), "connections")
    start_s = time.monotonic()
    for index in range(20):
        time.sleep(max(0.0, start_s + index * 0.06 - time.monotonic()))
        for red, topic in zip((100, 200), TOPICS, strict=True):
            peer.send(picture_message(red, index + 1), topic)
    wait_until(lambda: node.counts.in_flight == 0, "the last frame")
    assert sum(pipeline.batches) == node.counts.processed
    assert max(pipeline.batches) == max_batch
    for name, label in zip(names, (1, 2), strict=True):
        wait_until(
            lambda each=name: (
                len(peer.received[each]) == node.counts_of(each.partition("/")[0]).processed
            ),
            "the last labels",
        )
        assert all(set(message.data) == {label} for message in peer.received[name])
    if max_batch == 2:
        # After two frames each the node knows when to expect the other camera.
        assert pipeline.batches.count(2) >= 5
        wait_until(lambda: peer.status("segment: camera rear").get("batch.last"), "diagnostics")
        assert float(peer.status("segment: camera rear")["batch.mean"]) > 1.1


def test_one_unusable_frame_of_a_batch(stage: Stage, peer: Peer) -> None:
    open_cameras(peer)
    names = ("front/labels", "rear/labels")
    peer.watch(*names)
    pipeline = FakePipeline(0.1)
    node = make_fake_node(stage, pipeline, image_topics=TOPICS, max_batch=2)
    wait_until(lambda: peer.connected(node, names), "connections")
    peer.send(picture_message(100, 1), TOPICS[0])
    wait_until(lambda: pipeline.batches == [1], "the first frame")
    broken = picture_message(200, 2)
    broken.step = 7
    peer.send(picture_message(100, 2), TOPICS[0])
    peer.send(broken, TOPICS[1])
    wait_until(lambda: node.counts.received == 3, "all frames")
    wait_until(lambda: node.counts.in_flight == 0, "the last frame")
    assert pipeline.batches == [1, 1]
    assert node.counts_of("front").processed == 2
    assert node.counts_of("rear").rejected == {"step": 1}


def test_a_camera_that_stops_is_said_and_the_other_goes_on(stage: Stage, peer: Peer) -> None:
    open_cameras(peer)
    peer.watch("front/labels")
    node = make_fake_node(
        stage, FakePipeline(), image_topics=TOPICS, diagnostics_period_s=0.05, stale_after_s=0.5
    )
    wait_until(lambda: peer.connected(node, ("front/labels",)), "connections")

    def warned() -> bool:
        time.sleep(0.02)
        peer.send(picture_message(100), TOPICS[0])
        return peer.status("segment: segmentation").get("level") == LEVELS["WARN"]

    wait_until(warned, "WARN")
    message = peer.status("segment: segmentation")["message"]
    assert message.startswith("rear: no frames on /rear/image_raw for 0.")
    assert peer.status("segment: camera rear")["level"] == LEVELS["STALE"]
    assert float(peer.status("segment: camera rear")["since_last_frame_s"]) > 0.5
    assert peer.status("segment: camera front")["level"] == LEVELS["OK"]


def test_time_that_goes_back_and_sizes_that_change(stage: Stage, peer: Peer) -> None:
    peer.open_camera()
    peer.watch("labels")
    node = make_fake_node(stage, FakePipeline(), diagnostics_period_s=0.05)
    wait_until(lambda: peer.connected(node, ("labels",)), "connections")
    for index, message in enumerate(
        (
            picture_message(100, 7),
            picture_message(100, 8, (9, 31)),
            picture_message(100, 3, (9, 31)),
            picture_message(100, 4),
        )
    ):
        peer.send(message)
        wait_until(lambda n=index: node.counts.processed == n + 1, "the frame")
    name = "segment: segmentation"
    wait_until(lambda: peer.status(name).get("processed") == "4", "diagnostics")
    assert (peer.status(name)["stamps_back"], peer.status(name)["size_changes"]) == ("1", "2")
    wait_until(lambda: len(peer.received["labels"]) == 4, "labels")
    sizes = [(message.height, message.width) for message in peer.received["labels"]]
    assert sizes == [(12, 20), (9, 31), (9, 31), (12, 20)]
    warnings = [each.message for each in peer.diagnostics if each.level == DiagnosticStatus.WARN]
    assert warnings == ["the stamps on /image went back in time"]


def test_listeners_come_and_go(stage: Stage, peer: Peer) -> None:
    open_cameras(peer)
    node = make_fake_node(stage, FakePipeline(), image_topics=TOPICS)
    wait_until(lambda: peer.connected(node), "connections")
    for round_number in (1, 2):
        listener = peer.create_subscription(Image, "segment/rear/labels", lambda message: None, 1)
        wait_until(lambda: node.count_subscribers("segment/rear/labels") == 1, "a listener")
        wait_until(lambda each=listener: each.get_publisher_count() == 1, "its publisher")
        processed = node.counts_of("rear").processed
        while node.counts_of("rear").processed == processed:
            peer.send(picture_message(100), TOPICS[1])
            time.sleep(0.02)
        peer.destroy_subscription(listener)
        wait_until(lambda: node.count_subscribers("segment/rear/labels") == 0, "nobody")
        unwatched = node.counts_of("rear").dropped.get("unwatched", 0)
        while node.counts_of("rear").dropped.get("unwatched", 0) == unwatched:
            peer.send(picture_message(100), TOPICS[1])
            time.sleep(0.02)
        assert round_number <= node.counts_of("rear").processed
    assert node.counts_of("front").received == 0


def test_compressed_outputs_while_somebody_listens(stage: Stage, peer: Peer) -> None:
    peer.open_camera()
    peer.watch("labels/compressed", "overlay/compressed")
    node = make_fake_node(stage, FakePipeline())
    outputs = ("labels/compressed", "overlay/compressed")
    wait_until(lambda: peer.connected(node, outputs), "connections")
    peer.send(picture_message(200))
    wait_until(lambda: all(peer.received[name] for name in outputs), "compressed outputs")
    labels, overlay = (peer.received[name][0] for name in outputs)
    decoded = cv2.imdecode(np.frombuffer(labels.data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, np.full((12, 20), 2, np.uint8))
    assert (labels.header.frame_id, overlay.header.frame_id) == ("camera_200", "camera_200")
    assert "jpeg" in overlay.format
    assert bytes(overlay.data[:2]) == b"\xff\xd8"
    assert node.count_publishers("segment/labels") == 1


def test_bad_cameras_are_told_and_can_be_put_right(stage: Stage, peer: Peer) -> None:
    node = make_fake_node(
        stage,
        FakePipeline(),
        image_topics=["/a/color/image", "/b/color/image"],
        diagnostics_period_s=0.05,
    )
    wait_until(lambda: "color" in peer.status("segment: segmentation").get("message", ""), "ERROR")
    assert "set camera_names to tell them apart" in peer.status("segment: segmentation")["message"]
    (result,) = peer.set_parameters_of_node(camera_names=["left", "right/x"])
    assert not result.successful
    assert "letters, digits and underscores" in result.reason
    (result,) = peer.set_parameters_of_node(camera_names=["left", "right"])
    assert result.successful, result.reason
    node.trigger_configure()
    node.trigger_activate()
    assert node.count_publishers("segment/left/labels") == 1
    assert node.count_subscribers("/b/color/image") == 1


def test_other_cameras_after_another_configuration(stage: Stage, peer: Peer) -> None:
    node = make_fake_node(stage, FakePipeline(), image_topics=TOPICS, autostart=False)
    node.trigger_configure()
    node.trigger_activate()
    assert node.count_subscribers(TOPICS[1]) == 1
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert node.set_parameters([Parameter("image_topics", value=["/side/image"])])[0].successful
    node.trigger_configure()
    node.trigger_activate()
    assert node.count_subscribers(TOPICS[0]) == 0 == node.count_publishers("segment/front/labels")
    assert node.count_publishers("segment/side/labels") == 1


@pytest.mark.parametrize("reliability", ["reliable", "best_effort"])
def test_reliability_of_the_outputs(stage: Stage, reliability: str) -> None:
    node = make_fake_node(
        stage, FakePipeline(), image_topics=TOPICS, output_reliability=reliability, autostart=False
    )
    node.trigger_configure()
    for topic in ("segment/front/labels", "segment/rear/overlay/compressed"):
        (info,) = node.get_publishers_info_by_topic(f"/{topic}")
        assert info.qos_profile.reliability.name == reliability.upper()


@pytest.mark.parametrize("kind", [Image, CompressedImage])
def test_both_kinds_of_message_serve_several_cameras(stage: Stage, peer: Peer, kind: Any) -> None:
    open_cameras(peer, kind)
    peer.watch("rear/labels")
    transport = "raw" if kind is Image else "compressed"
    node = make_fake_node(stage, FakePipeline(), image_topics=TOPICS, transport=transport)
    wait_until(lambda: peer.connected(node, ("rear/labels",)), "connections")
    message: Any = picture_message(200)
    if kind is CompressedImage:
        png = cv2.imencode(".png", np.full((12, 20, 3), 200, np.uint8))[1].tobytes()
        message = CompressedImage(format="png", data=array.array("B", png))
    peer.send(message, TOPICS[1])
    wait_until(lambda: peer.received["rear/labels"], "labels")
    assert set(peer.received["rear/labels"][0].data) == {2}
