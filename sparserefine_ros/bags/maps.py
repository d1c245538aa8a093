# SPDX-License-Identifier: Apache-2.0
"""The results of a bag as a bag, on the topics of the node."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.bags.frames import Header
from sparserefine_ros.bags.writer import BagWriter
from sparserefine_ros.records import Map, Prediction
from sparserefine_ros.render import draw_overlay

FOLDER: Final = "maps"
WANTED: Final = frozenset({Map.LABELS, Map.ENTROPY, Map.REFINED})
LABELS: Final = "/segment/labels"
ENTROPY: Final = "/segment/entropy"
REFINED: Final = "/segment/refined"
# In JPEG, as image_transport names it: three bytes per pixel are for looking at only.
OVERLAY: Final = "/segment/overlay/compressed"


def maps_folder(folder: Path) -> Path:
    """Where the bag lies in a folder of results."""
    return folder / FOLDER


def write_maps(
    bag: BagWriter,
    header: Header,
    log_ns: int,
    image: NDArray[np.uint8],
    prediction: Prediction,
    palette: NDArray[np.uint8],
) -> None:
    """Write the maps of one frame with the header of its picture.

    Args:
        bag: where.
        header: of the picture.
        log_ns: when the picture was recorded, nanoseconds.
        image: uint8 [H, W, 3], RGB.
        prediction: with the maps WANTED.
        palette: uint8 [256, 3], RGB.
    """
    labels, entropy, refined = prediction.labels, prediction.entropy, prediction.refined
    assert labels is not None
    assert entropy is not None
    assert refined is not None
    bag.write_image(LABELS, header, log_ns, labels, "mono8")
    bag.write_image(ENTROPY, header, log_ns, entropy, "32FC1")
    bag.write_image(REFINED, header, log_ns, refined * np.uint8(255), "mono8")
    overlay = draw_overlay(image, labels, palette, refined=refined)
    bag.write_compressed(OVERLAY, header, log_ns, overlay, "jpeg")
