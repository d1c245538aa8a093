# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from sparserefine_ros.ros.silence import explain_silence

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT


def publisher(kind: str = "Image", reliability: ReliabilityPolicy = BEST_EFFORT) -> Any:
    quality = SimpleNamespace(reliability=reliability)
    return SimpleNamespace(topic_type=f"sensor_msgs/msg/{kind}", qos_profile=quality)


@pytest.mark.parametrize(
    ("publishers", "message_type", "reliability", "why"),
    [
        ([], Image, "best_effort", "nobody publishes it"),
        ([publisher()], Image, "best_effort", ""),
        ([publisher("CompressedImage"), publisher()], Image, "best_effort", ""),
        (
            [publisher()],
            CompressedImage,
            "best_effort",
            "it has sensor_msgs/msg/Image, not sensor_msgs/msg/CompressedImage: set transport, or "
            "another topic",
        ),
        (
            [publisher()],
            Image,
            "reliable",
            "its publisher is best effort: set image_reliability to best_effort",
        ),
        ([publisher(), publisher(reliability=RELIABLE)], Image, "reliable", ""),
    ],
)
def test_what_the_publishers_tell(
    publishers: list[Any], message_type: type, reliability: str, why: str
) -> None:
    assert explain_silence(publishers, message_type, reliability) == why
