# SPDX-License-Identifier: Apache-2.0
"""What stands along the procedural street, and the shapes it is made of. Lengths in metres."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.street.canvas import Canvas, Colour, dimmed

SKY, BUILDING, POLE, ROAD, SIDEWALK, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
THINNEST_PX: Final = 0.5


class Thing(Protocol):
    """Something along the street that can be painted."""

    @property
    def far_m(self) -> float:
        """Where along the street it ends."""
        ...

    @property
    def order_m(self) -> float:
        """Things with a larger value are painted earlier."""
        ...

    def draw(self, canvas: Canvas) -> None:
        """Paint it into the picture and the labels."""
        ...


def upright(
    left_m: float,
    left_along: float,
    right_m: float,
    right_along: float,
    low_m: float,
    high_m: float,
) -> list[list[float]]:
    """Corners of an upright rectangle: top left, top right, bottom right, bottom left."""
    return [
        [left_m, high_m, left_along],
        [right_m, high_m, right_along],
        [right_m, low_m, right_along],
        [left_m, low_m, left_along],
    ]


def stem(
    canvas: Canvas,
    lateral_m: float,
    along_m: float,
    span_m: tuple[float, float],
    width_m: float,
    colour: Colour,
    label: int,
) -> None:
    """An upright round bar from span_m[0] to span_m[1], lit from the sun's side."""
    middle, row, scale = canvas.camera.foot(lateral_m, along_m)
    if width_m * scale < THINNEST_PX:
        return
    half = width_m * scale / 2
    low_y, high_y = row - span_m[0] * scale, row - span_m[1] * scale
    outline = [
        (middle - half, low_y),
        (middle + half, low_y),
        (middle + half * 0.8, high_y),
        (middle - half * 0.8, high_y),
    ]
    canvas.polygon(np.array(outline), colour, label)
    if half > 1.5:
        dark = dimmed(colour, 0.72)
        side, end = (0, 3) if canvas.light.sun_side > 0 else (1, 2)
        shaded = [outline[side], (middle, low_y), (middle, high_y), outline[end]]
        canvas.polygon(np.array(shaded), dark, None)


def disc(
    lateral_m: float,
    up_m: float,
    along_m: float,
    radius_m: float,
    corners: int,
    turn_rad: float = 0.0,
) -> NDArray[np.float64]:
    """Regular polygon [corners, 3] facing along the street."""
    angles = np.arange(corners) * (2 * np.pi / corners) + turn_rad
    points = np.empty((corners, 3))
    points[:, 0] = lateral_m + radius_m * np.cos(angles)
    points[:, 1] = up_m + radius_m * np.sin(angles)
    points[:, 2] = along_m
    return points
