# SPDX-License-Identifier: Apache-2.0
"""Which maps the wanted outputs need, and how each becomes a message."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from std_msgs.msg import Header

from sparserefine_ros.records import Map
from sparserefine_ros.ros.convert import compressed_to_rgb
from sparserefine_ros.ros.publishers import OUTPUTS, Wanted


@pytest.mark.parametrize(
    ("names", "computed"),
    [
        ((), set()),
        (("overlay",), {Map.LABELS, Map.REFINED}),
        (("overlay/compressed",), {Map.LABELS, Map.REFINED}),
        (("entropy",), {Map.ENTROPY}),
        (("labels/compressed", "confidence"), {Map.LABELS, Map.CONFIDENCE}),
    ],
)
def test_the_overlay_needs_labels_and_refined(names: tuple[str, ...], computed: set[Map]) -> None:
    wanted = Wanted(frozenset(names))
    assert wanted.computed == computed
    assert bool(wanted) == bool(names)
    assert wanted.overlay == any(name.startswith("overlay") for name in names)


def test_labels_come_back_from_their_png_as_they_were() -> None:
    labels = np.random.default_rng(0).integers(0, 256, (33, 47), np.uint8)
    header = Header(frame_id="camera")
    message = OUTPUTS["labels/compressed"].to_message(labels, header)
    assert (message.header, message.format) == (header, "mono8; png compressed mono8")
    decoded = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, labels)


def test_the_overlay_keeps_its_channel_order_as_jpeg() -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[..., 0], picture[:, 30:, 2] = 200, 90
    message = OUTPUTS["overlay/compressed"].to_message(picture, Header())
    back = compressed_to_rgb(message, max_pixels=10_000)
    assert np.abs(back.astype(int) - picture).mean() < 4.0
