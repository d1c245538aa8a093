# SPDX-License-Identifier: Apache-2.0
"""Why no pictures come on a topic, by what the ROS graph tells of its publishers."""

from __future__ import annotations

from collections.abc import Sequence

from rclpy.qos import ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo


def explain_silence(
    publishers: Sequence[TopicEndpointInfo], message_type: type, reliability: str
) -> str:
    """What to do about a silent topic, in words; empty where its publishers are as they should.

    Args:
        publishers: all of the topic.
        message_type: what is subscribed to.
        reliability: of the subscription, "best_effort" or "reliable".
    """
    if not publishers:
        return "nobody publishes it"
    wanted = f"sensor_msgs/msg/{message_type.__name__}"
    found = sorted({publisher.topic_type for publisher in publishers})
    if wanted not in found:
        return f"it has {', '.join(found)}, not {wanted}: set transport, or another topic"
    policies = {publisher.qos_profile.reliability for publisher in publishers}
    if reliability == "reliable" and policies == {ReliabilityPolicy.BEST_EFFORT}:
        return "its publisher is best effort: set image_reliability to best_effort"
    return ""
