# SPDX-License-Identifier: Apache-2.0
"""The names of the labels as a latched vision_msgs/LabelInfo, where vision_msgs is installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Header

LATCHED_QOS: Final = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


class LabelInfo:
    """The topic `~/label_info`, one for all cameras; nothing without vision_msgs.

    Args:
        node: owner of the publisher.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        vision = import_vision_msgs()
        self._publisher = vision and node.create_lifecycle_publisher(
            vision.LabelInfo, "~/label_info", LATCHED_QOS
        )

    def publish(self, class_names: Sequence[str], header: Header) -> None:
        """Publish the names, for late subscribers too."""
        if self._publisher is not None:
            self._publisher.publish(names_to_label_info(import_vision_msgs(), class_names, header))

    def destroy(self) -> None:
        """Take the publisher away from the node."""
        if self._publisher is not None:
            self._node.destroy_lifecycle_publisher(self._publisher)


def import_vision_msgs() -> Any:
    """The module vision_msgs.msg, or None where it is not installed."""
    try:
        return importlib.import_module("vision_msgs.msg")
    except ImportError:
        return None


def names_to_label_info(vision: Any, class_names: Sequence[str], header: Header) -> Any:
    """The vision_msgs/LabelInfo that names the values of the labels map.

    Args:
        vision: the module vision_msgs.msg.
        class_names: in label order.
        header: its stamp says since when the names hold.
    """
    entries = [
        vision.VisionClass(class_id=label, class_name=name)
        for label, name in enumerate(class_names)
    ]
    return vision.LabelInfo(header=header, class_map=entries)
