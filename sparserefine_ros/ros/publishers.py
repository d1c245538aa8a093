# SPDX-License-Identifier: Apache-2.0
"""The node's outputs: which of them somebody listens to, and the messages sent to them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from sparserefine_ros.records import Map, Prediction
from sparserefine_ros.ros.convert import array_to_image

# Reliable publishers serve reliable and best-effort subscribers; depth 1 keeps results fresh.
OUTPUT_QOS: Final = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE
)
LATCHED_QOS: Final = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
MAP_ENCODINGS: Final = {
    Map.LABELS: "mono8",
    Map.ENTROPY: "32FC1",
    Map.CONFIDENCE: "mono8",
    Map.REFINED: "mono8",
}
OVERLAY: Final = "overlay"
LABEL_INFO: Final = "label_info"


@dataclass(frozen=True)
class Wanted:
    """The outputs that have a subscriber.

    Attributes:
        published: maps to publish.
        overlay: whether to draw and publish the overlay.
    """

    published: frozenset[Map]
    overlay: bool

    def __bool__(self) -> bool:
        return self.overlay or bool(self.published)

    @property
    def computed(self) -> frozenset[Map]:
        """Maps the pipeline must compute: those published and those the overlay is drawn from."""
        drawn = {Map.LABELS, Map.REFINED} if self.overlay else set()
        return self.published | drawn


class Outputs:
    """Publishers in the private namespace of a lifecycle node.

    Args:
        node: owner of the publishers; they publish while it is active.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._maps = {
            key: node.create_lifecycle_publisher(Image, f"~/{key.value}", OUTPUT_QOS)
            for key in MAP_ENCODINGS
        }
        self._overlay = node.create_lifecycle_publisher(Image, f"~/{OVERLAY}", OUTPUT_QOS)
        vision = import_vision_msgs()
        self._label_info = vision and node.create_lifecycle_publisher(
            vision.LabelInfo, f"~/{LABEL_INFO}", LATCHED_QOS
        )

    def wanted(self) -> Wanted:
        """Look which outputs have a subscriber now."""
        return Wanted(
            frozenset(key for key, out in self._maps.items() if out.get_subscription_count() > 0),
            self._overlay.get_subscription_count() > 0,
        )

    def publish(
        self,
        prediction: Prediction,
        overlay: NDArray[np.uint8] | None,
        wanted: Wanted,
        header: Header,
    ) -> None:
        """Publish the wanted maps.

        Args:
            prediction: holds at least the maps of `wanted.computed`.
            overlay: uint8 [H, W, 3] RGB; None when it is not wanted.
            wanted: what to publish.
            header: stamp and frame of the input picture, copied to every output.
        """
        for key in wanted.published:
            array = _map_to_array(prediction, key)
            self._maps[key].publish(array_to_image(array, MAP_ENCODINGS[key], header))
        if overlay is not None:
            self._overlay.publish(array_to_image(overlay, "rgb8", header))

    def publish_label_info(self, class_names: Sequence[str], header: Header) -> None:
        """Publish the names of the labels for late subscribers too; nothing without vision_msgs."""
        if self._label_info is not None:
            vision = import_vision_msgs()
            self._label_info.publish(names_to_label_info(vision, class_names, header))

    def destroy(self) -> None:
        """Take the publishers away from the node."""
        for publisher in (*self._maps.values(), self._overlay, self._label_info):
            if publisher is not None:
                self._node.destroy_lifecycle_publisher(publisher)


def _map_to_array(prediction: Prediction, key: Map) -> NDArray[Any]:
    """A map as it is published: what is refined becomes 255."""
    arrays: dict[Map, NDArray[Any] | None] = {
        Map.LABELS: prediction.labels,
        Map.ENTROPY: prediction.entropy,
        Map.CONFIDENCE: prediction.confidence,
        Map.REFINED: prediction.refined,
    }
    array = arrays[key]
    if array is None:
        raise ValueError(f"expected the map {key.value} in the prediction: ask the pipeline for it")
    return array * np.uint8(255) if key is Map.REFINED else array


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
