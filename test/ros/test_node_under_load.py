# SPDX-License-Identifier: Apache-2.0
"""Too many frames and malformed ones: bounded latency, and books that balance to the frame."""

from __future__ import annotations

import array
import collections
import random
import threading
import time

import numpy as np
from rclpy.lifecycle import TransitionCallbackReturn
from ros.harness import FakePipeline, Peer, Stage, make_fake_node, wait_until
from sensor_msgs.msg import Image

from sparserefine_ros.ros.worker import FrameCounts

MALFORMED = 2000


def picture_message(height: int, width: int, seed: int = 0) -> Image:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.data = array.array("B", picture.tobytes())
    return message


def ended(counts: FrameCounts) -> int:
    return counts.processed + sum(counts.dropped.values()) + sum(counts.rejected.values())


def test_flood_at_three_times_the_rate(stage: Stage, peer: Peer) -> None:
    peer.open_camera()
    peer.watch("labels")
    delay_s, frames = 0.03, 200
    node = make_fake_node(stage, FakePipeline(delay_s))
    wait_until(lambda: peer.connected(node, ("labels",)), "connections")
    message = picture_message(120, 160)
    ages_s: list[float] = []

    def measure(labels: Image) -> None:
        stamp = labels.header.stamp
        ages_s.append(time.time() - stamp.sec - stamp.nanosec * 1e-9)

    peer.create_subscription(Image, "segment/labels", measure, 10)
    wait_until(lambda: node.count_subscribers("segment/labels") == 2, "the second subscriber")
    start_s = time.monotonic()
    for index in range(frames):
        while time.monotonic() < start_s + index * delay_s / 3:
            time.sleep(0.001)
        message.header.stamp = peer.get_clock().now().to_msg()
        peer.send(message)
        counts = node.counts
        assert counts.received == ended(counts) + counts.in_flight
    wait_until(lambda: node.counts.in_flight == 0, "the last frame")
    wait_until(lambda: len(ages_s) == node.counts.processed, "the last labels")
    counts = node.counts
    assert counts.received == ended(counts)
    assert set(counts.dropped) == {"newer_frame"}
    # A busy machine loses some of them before the node sees them.
    assert counts.received > 0.5 * frames
    assert 0.1 * frames < counts.processed < 0.5 * frames
    # One frame in work and one waiting: a frame is at most two processing times old. The rest
    # is slack for a busy machine, far below the 4 s that a queue would have built up.
    assert np.median(ages_s) < 2.5 * delay_s
    assert max(ages_s) < 2 * delay_s + 1.0


def test_frames_lost_in_the_middleware_are_counted(stage: Stage, peer: Peer) -> None:
    peer.open_camera()
    peer.watch("labels")
    node = make_fake_node(stage, FakePipeline(), diagnostics_period_s=0.05)
    wait_until(lambda: peer.connected(node, ("labels",)), "connections")
    peer.send(picture_message(8, 8))
    wait_until(lambda: node.counts.received == 1, "the first frame")
    blocked = threading.Event()

    def block_the_executor() -> None:
        blocked.set()
        timer.cancel()
        time.sleep(0.3)

    timer = node.create_timer(0.001, block_the_executor)
    assert blocked.wait(10.0)
    for _ in range(20):
        peer.send(picture_message(8, 8))
    wait_until(lambda: node.counts.received == 2, "the frame left in the queue of depth 1")

    def told() -> bool:
        values = peer.status("segment: segmentation")
        return (values.get("received"), values.get("lost_in_middleware")) == ("2", "19")

    wait_until(told, "diagnostics that tell the losses")


def malformed(rng: random.Random) -> tuple[Image, str]:
    """A good message with one thing broken, and the reason under which it must count."""
    height, width = rng.randint(1, 40), rng.randint(1, 40)
    message = picture_message(height, width, seed=rng.randrange(2**32))
    message.header.frame_id = "".join(
        chr(rng.randrange(32, 0x250)) for _ in range(rng.randrange(9))
    )
    message.is_bigendian = rng.randrange(2)
    kind = rng.choice(["empty", "too_large", "encoding", "step", "data_size"])
    if kind == "empty":
        message.height, message.width = rng.choice([(0, width), (height, 0), (0, 0)])
    elif kind == "too_large":
        message.height, message.width = rng.randint(10_001, 2**32 - 1), rng.randint(10_000, 2**31)
        message.step = rng.choice([0, 3 * width, 2**32 - 1])
    elif kind == "encoding":
        letters = [chr(rng.randrange(1, 0x2FF)) for _ in range(rng.randrange(20))]
        message.encoding = rng.choice(["", "RGB8", "rgb9", "8UC", "rgb8 ", "".join(letters)])
    elif kind == "step":
        message.step = rng.randrange(3 * width)
    else:
        message.data = message.data[: rng.randrange(len(message.data))]
    return message, kind


def test_malformed_messages_are_counted_and_the_next_good_frame_is_right(
    stage: Stage, peer: Peer
) -> None:
    peer.open_camera(reliable=True)
    peer.watch("labels")
    node = make_fake_node(stage, FakePipeline(), image_reliability="reliable")
    wait_until(lambda: peer.connected(node, ("labels",)), "connections")
    rng = random.Random(20)
    expected: collections.Counter[str] = collections.Counter()
    for sent in range(1, MALFORMED + 1):
        message, reason = malformed(rng)
        peer.send(message)
        wait_until(lambda n=sent: ended(node.counts) == n, f"the end of message {sent}")
        expected[reason] += 1
        assert node.counts.rejected == expected, message.encoding
    assert node.counts.processed == 0
    assert len(expected) == 5
    good = picture_message(33, 47)
    peer.send(good)
    wait_until(lambda: peer.received["labels"], "labels of the good frame")
    picture = np.asarray(good.data, np.uint8).reshape(33, 47, 3)
    assert bytes(peer.received["labels"][0].data) == (picture[..., 0] // 100).tobytes()
    wait_until(lambda: ended(node.counts) == MALFORMED + 1, "the end of the good frame")
    assert (node.counts.received, node.counts.processed) == (MALFORMED + 1, 1)


def test_a_frame_that_takes_long_does_not_silence_a_node_that_is_deactivated(
    stage: Stage, peer: Peer
) -> None:
    peer.open_camera()
    peer.watch("labels")
    node = make_fake_node(stage, FakePipeline(1.5), diagnostics_period_s=0.1)
    wait_until(lambda: peer.connected(node, ("labels",)), "connections")
    node._diagnostics_timer.cancel()
    peer.send(picture_message(12, 16))
    wait_until(lambda: node.counts.in_flight == 1, "the frame")
    told = len(peer.diagnostics)
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert node.counts.processed == 1
    wait_until(lambda: len(peer.diagnostics) >= told + 5, "diagnostics meanwhile")
