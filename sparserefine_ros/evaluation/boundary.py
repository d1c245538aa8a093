# SPDX-License-Identifier: Apache-2.0
"""The band of pixels along the edges between classes."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.datasets import IGNORED_LABEL

EDGE_DISTANCE_PX: Final = 3


def near_edges(
    truth: NDArray[np.uint8], *, distance_px: int = EDGE_DISTANCE_PX
) -> NDArray[np.bool_]:
    """Find the labelled pixels close to a labelled pixel of another class.

    A pixel is near an edge when the square of side 2 * distance_px + 1 around it, cut at the
    border of the picture, holds a labelled pixel of another class. So the band is `distance_px`
    wide on each side of an edge. Unlabelled pixels are never in the band and make no edge; two
    classes with an unlabelled gap between them meet when the gap is narrower than `distance_px`.

    The IoU over this band is the trimap measure of Kohli, Ladicky and Torr, "Robust Higher Order
    Potentials for Enforcing Label Consistency" (2009), not the Boundary IoU of instance masks.

    Args:
        truth: uint8 [H, W], class ids, 255 ignored.
        distance_px: at least 1.

    Returns:
        bool [H, W].

    Raises:
        ValueError: the distance is below 1.
    """
    if distance_px < 1:
        raise ValueError(f"expected a distance of 1 pixel or more, got {distance_px}")
    labelled: NDArray[np.bool_] = truth != IGNORED_LABEL
    if not truth.size:
        return labelled
    square = np.ones((2 * distance_px + 1, 2 * distance_px + 1), np.uint8)
    # 255 never is the lowest label where a labelled one is near; 0 never hides the highest.
    lowest = cv2.erode(truth, square)
    highest = cv2.dilate(np.where(labelled, truth, np.uint8(0)), square)
    np.logical_and(labelled, lowest != highest, out=labelled)
    return labelled
