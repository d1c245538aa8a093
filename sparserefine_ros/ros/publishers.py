# SPDX-License-Identifier: Apache-2.0
"""The outputs of one camera: which of them somebody listens to, and the messages sent to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sparserefine_ros.records import Map, Prediction
from sparserefine_ros.ros.compressed import map_to_png, picture_to_jpeg
from sparserefine_ros.ros.convert import array_to_image

Array = NDArray[Any]


@dataclass(frozen=True)
class Output:
    """One output of a camera.

    Attributes:
        kind: its message type.
        source: the map it shows; None for the overlay.
        to_message: makes the message from array and header.
    """

    kind: type
    source: Map | None
    to_message: Callable[[Array, Header], Any]


def _raw(source: Map | None, encoding: str) -> Output:
    return Output(Image, source, lambda pixels, header: array_to_image(pixels, encoding, header))


OVERLAY: Final = "overlay"
OUTPUTS: Final[Mapping[str, Output]] = MappingProxyType(
    {
        "labels": _raw(Map.LABELS, "mono8"),
        "labels/compressed": Output(CompressedImage, Map.LABELS, map_to_png),
        "entropy": _raw(Map.ENTROPY, "32FC1"),
        "confidence": _raw(Map.CONFIDENCE, "mono8"),
        "refined": _raw(Map.REFINED, "mono8"),
        OVERLAY: _raw(None, "rgb8"),
        "overlay/compressed": Output(CompressedImage, None, picture_to_jpeg),
    }
)


@dataclass(frozen=True)
class Wanted:
    """The outputs that have a subscriber, by their names in OUTPUTS."""

    names: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def overlay(self) -> bool:
        """Whether the overlay must be drawn."""
        return any(OUTPUTS[name].source is None for name in self.names)

    @property
    def computed(self) -> frozenset[Map]:
        """Maps the pipeline must compute: those published and those the overlay is drawn from."""
        drawn = {Map.LABELS, Map.REFINED} if self.overlay else set()
        sources = (OUTPUTS[name].source for name in self.names)
        return frozenset(drawn.union(source for source in sources if source is not None))


def newest_only(reliability: str) -> QoSProfile:
    """Quality of service that keeps the newest message only, "reliable" or "best_effort"."""
    reliable = reliability == "reliable"
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
    )


class Outputs:
    """Publishers of one camera.

    Args:
        node: a lifecycle node, owner of the publishers; they publish while it is active.
        prefix: what comes before the name of an output, such as `~/` or `~/front/`.
        reliability: "reliable" or "best_effort".
    """

    def __init__(self, node: LifecycleNode, prefix: str, reliability: str) -> None:
        self._node = node
        quality = newest_only(reliability)
        self._publishers: dict[str, Any] = {
            name: node.create_lifecycle_publisher(output.kind, f"{prefix}{name}", quality)
            for name, output in OUTPUTS.items()
        }

    def wanted(self) -> Wanted:
        """Look which outputs have a subscriber now."""
        return Wanted(
            frozenset(
                name for name, out in self._publishers.items() if out.get_subscription_count() > 0
            )
        )

    def publish(
        self,
        prediction: Prediction,
        overlay: NDArray[np.uint8] | None,
        wanted: Wanted,
        header: Header,
    ) -> None:
        """Publish the wanted outputs.

        Args:
            prediction: holds at least the maps of `wanted.computed`.
            overlay: uint8 [H, W, 3] RGB; None when it is not wanted.
            wanted: what to publish.
            header: stamp and frame of the input picture, copied to every output.
        """
        for name in wanted.names:
            output = OUTPUTS[name]
            array = overlay if output.source is None else map_to_array(prediction, output.source)
            if array is not None:
                self._publishers[name].publish(output.to_message(array, header))

    def destroy(self) -> None:
        """Take the publishers away from the node."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)


def map_to_array(prediction: Prediction, key: Map) -> Array:
    """A map as it is published: what is refined becomes 255.

    Raises:
        ValueError: the prediction lacks the map.
    """
    arrays: dict[Map, Array | None] = {
        Map.LABELS: prediction.labels,
        Map.ENTROPY: prediction.entropy,
        Map.CONFIDENCE: prediction.confidence,
        Map.REFINED: prediction.refined,
    }
    array = arrays[key]
    if array is None:
        raise ValueError(f"expected the map {key.value} in the prediction: ask the pipeline for it")
    return array * np.uint8(255) if key is Map.REFINED else array
