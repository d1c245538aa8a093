# SPDX-License-Identifier: Apache-2.0
"""Pedestrians and cyclists of the procedural street. Lengths in metres, angles in radians."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from sparserefine_ros.data.street.canvas import Board, Canvas, Colour, box, dimmed
from sparserefine_ros.data.street.things import BICYCLIST, PEDESTRIAN

_TYRE: Final[Colour] = (20.0, 20.0, 21.0)
_FAR_PX: Final = 6.0
_TWELFTHS: Final = np.arange(12) * (2 * np.pi / 12)
_ROUND: Final = np.stack([np.cos(_TWELFTHS), np.sin(_TWELFTHS)], axis=1)
_BICYCLE_FRAME: Final = (
    ((-0.52, 0.34), (-0.15, 0.9)), ((-0.52, 0.34), (0.0, 0.32)), ((0.0, 0.32), (0.4, 0.85)),
    ((0.0, 0.32), (-0.17, 0.95)), ((-0.15, 0.85), (0.4, 0.85)), ((0.52, 0.34), (0.38, 1.02)),
)  # fmt: skip


@dataclass(frozen=True)
class Clothes:
    """Colours of a person, RGB 0..255."""

    top_rgb: Colour
    legs_rgb: Colour
    skin_rgb: Colour
    hair_rgb: Colour


@dataclass(frozen=True)
class Pedestrian:
    """Someone on foot.

    Attributes:
        stride_rad: phase of the walk.
        sideways: walks across the street, so that the steps show.
    """

    lateral_m: float
    far_m: float
    height_m: float
    clothes: Clothes
    stride_rad: float
    sideways: bool
    bag: bool

    @property
    def order_m(self) -> float:
        """Painting order, see `Thing`."""
        return self.far_m

    def draw(self, canvas: Canvas) -> None:
        """Paint it into the picture and the labels."""
        if self.far_m < canvas.camera.along_m + 1.5:
            return
        column, row, scale = canvas.camera.foot(self.lateral_m, self.far_m)
        board = Board(column, row, scale * self.height_m / 1.75)
        if not canvas.on_screen(board.put([(-0.6, 0.0), (0.6, 1.8)])):
            return
        top = canvas.lit(self.clothes.top_rgb, self.far_m, facing=0.35)
        if scale < _FAR_PX:
            legs = canvas.lit(self.clothes.legs_rgb, self.far_m, facing=0.2)
            canvas.polygon(board.put(box(-0.14, 0.0, 0.14, 0.85)), legs, PEDESTRIAN)
            canvas.polygon(board.put(box(-0.24, 0.85, 0.24, 1.48)), top, PEDESTRIAN)
            _draw_head(canvas, board, (0.0, 1.62), self.clothes, self.far_m, PEDESTRIAN)
            return
        self._draw_legs(canvas, board)
        swing = self._swing
        arm = 0.05 if self.sideways else 0.24
        sleeve = canvas.lit(dimmed(self.clothes.top_rgb, 0.8), self.far_m, facing=0.3)
        canvas.polygon(
            board.put(_bar((-arm, 1.38), (-arm - 0.05 + swing, 0.82), 0.1)), sleeve, PEDESTRIAN
        )
        width = 0.13 if self.sideways else 0.2
        torso = [(-width, 1.38), (-0.1, 1.47), (0.1, 1.47), (width, 1.38), (width * 0.85, 0.82),
                 (-width * 0.85, 0.82)]  # fmt: skip
        canvas.polygon(board.put(torso), top, PEDESTRIAN)
        canvas.polygon(
            board.put(_bar((arm, 1.38), (arm + 0.05 - swing, 0.82), 0.1)), sleeve, PEDESTRIAN
        )
        if self.bag:
            bag = box(arm + 0.02, 0.6, arm + 0.2, 0.9)
            canvas.polygon(board.put(bag), canvas.lit((60, 48, 40), self.far_m), PEDESTRIAN)
        _draw_head(canvas, board, (0.0, 1.62), self.clothes, self.far_m, PEDESTRIAN)

    @property
    def _swing(self) -> float:
        return math.sin(self.stride_rad) * (0.28 if self.sideways else 0.07)

    def _draw_legs(self, canvas: Canvas, board: Board) -> None:
        swing, lift = self._swing, 0.05 * abs(math.cos(self.stride_rad))
        legs = canvas.lit(self.clothes.legs_rgb, self.far_m, facing=0.2)
        dark = canvas.lit(dimmed(self.clothes.legs_rgb, 0.7), self.far_m, facing=0.2)
        hip = 0.0 if self.sideways else 0.09
        back = board.put(_bar((-hip, 0.9), (-hip - swing, lift), 0.17))
        front = board.put(_bar((hip, 0.9), (hip + swing, 0.05 - lift), 0.17))
        canvas.polygon(back, dark, PEDESTRIAN)
        canvas.polygon(front, legs, PEDESTRIAN)


def _bar(
    start: tuple[float, float], end: tuple[float, float], width: float
) -> list[tuple[float, float]]:
    """Outline of a straight bar, (right, up) in metres."""
    right, up = end[0] - start[0], end[1] - start[1]
    half = width / 2 / (math.hypot(right, up) or 1.0)
    across, rise = -up * half, right * half
    return [
        (start[0] + across, start[1] + rise),
        (end[0] + across, end[1] + rise),
        (end[0] - across, end[1] - rise),
        (start[0] - across, start[1] - rise),
    ]


def _draw_head(
    canvas: Canvas,
    board: Board,
    centre: tuple[float, float],
    clothes: Clothes,
    along_m: float,
    label: int,
) -> None:
    """Head around (right, up) metres of a board; the hair is its upper half."""
    head = board.put(centre + 0.125 * _ROUND * (0.85, 1.08))
    canvas.polygon(head, canvas.lit(clothes.skin_rgb, along_m, facing=0.4), label)
    canvas.polygon(head[:7], canvas.lit(clothes.hair_rgb, along_m, facing=0.3), label)


@dataclass(frozen=True)
class Cyclist:
    """Rider and bicycle along the street; `sideways` shows them from the side."""

    lateral_m: float
    far_m: float
    clothes: Clothes
    pedal_rad: float
    sideways: bool
    helmet_rgb: Colour

    @property
    def order_m(self) -> float:
        """Riders pass parked cars on the camera's side, so they come after a car beside them."""
        return self.far_m if self.sideways else self.far_m - 4.0

    def draw(self, canvas: Canvas) -> None:
        """Paint it into the picture and the labels."""
        if self.far_m < canvas.camera.along_m + 1.5:
            return
        board = Board(*canvas.camera.foot(self.lateral_m, self.far_m))
        if not canvas.on_screen(board.put([(-1.0, 0.0), (1.0, 1.8)])):
            return
        if self.sideways:
            self._draw_from_side(canvas, board)
        else:
            self._draw_from_end(canvas, board)

    def _draw_from_end(self, canvas: Canvas, board: Board) -> None:
        tyre = canvas.lit(_TYRE, self.far_m)
        legs = canvas.lit(self.clothes.legs_rgb, self.far_m, facing=0.2)
        top = canvas.lit(self.clothes.top_rgb, self.far_m, facing=0.4)
        sleeve = canvas.lit(dimmed(self.clothes.top_rgb, 0.8), self.far_m, facing=0.3)
        metal = canvas.lit((70, 72, 76), self.far_m, facing=0.2)
        step = 0.16 * math.sin(self.pedal_rad)
        parts = [
            (box(-0.03, 0.0, 0.03, 0.68), tyre),
            (_bar((-0.27, 1.03), (0.27, 1.03), 0.04), metal),
        ]
        for side, rise in ((-1, step), (1, -step)):
            knee = (side * 0.15, 0.68 + rise / 2)
            parts += [
                (_bar((side * 0.09, 0.98), knee, 0.15), legs),
                (_bar(knee, (side * 0.1, 0.28 + rise), 0.11), legs),
                (_bar((side * 0.2, 1.42), (side * 0.26, 1.05), 0.1), sleeve),
            ]
        torso = [(-0.15, 0.9), (-0.22, 1.4), (-0.1, 1.5), (0.1, 1.5), (0.22, 1.4), (0.15, 0.9)]
        for outline, colour in [*parts, (torso, top)]:
            canvas.polygon(board.put(outline), colour, BICYCLIST)
        self._draw_rider_head(canvas, board, 0.0)

    def _draw_from_side(self, canvas: Canvas, board: Board) -> None:
        tyre = canvas.lit(_TYRE, self.far_m)
        legs = canvas.lit(self.clothes.legs_rgb, self.far_m, facing=0.2)
        top = canvas.lit(self.clothes.top_rgb, self.far_m, facing=0.4)
        metal = canvas.lit(dimmed(self.clothes.top_rgb, 0.5), self.far_m, facing=0.2)
        for hub in (-0.52, 0.52):
            ring, inner = (hub, 0.34) + 0.34 * _ROUND, (hub, 0.34) + 0.29 * _ROUND
            wheel = np.concatenate([ring, ring[:1], inner[:1], inner[::-1]])
            canvas.polygon(board.put(wheel), tyre, BICYCLIST)
        parts = [(_bar(start, end, 0.045), metal) for start, end in _BICYCLE_FRAME]
        for phase in (self.pedal_rad, self.pedal_rad + math.pi):
            foot = (0.16 * math.cos(phase), 0.32 + 0.16 * math.sin(phase))
            knee = (0.18, (0.95 + foot[1]) / 2 + 0.06)
            parts += [(_bar((-0.17, 0.97), knee, 0.15), legs), (_bar(knee, foot, 0.1), legs)]
        parts.append(([(-0.3, 0.95), (-0.08, 0.93), (0.24, 1.36), (0.1, 1.5)], top))
        parts.append((_bar((0.17, 1.36), (0.4, 1.03), 0.09), top))
        for outline, colour in parts:
            canvas.polygon(board.put(outline), colour, BICYCLIST)
        self._draw_rider_head(canvas, board, 0.24)

    def _draw_rider_head(self, canvas: Canvas, board: Board, right_m: float) -> None:
        _draw_head(canvas, board, (right_m, 1.62), self.clothes, self.far_m, BICYCLIST)
        helmet = board.put((right_m, 1.65) + 0.13 * _ROUND[:7])
        canvas.polygon(helmet, canvas.lit(self.helmet_rgb, self.far_m, facing=0.5), BICYCLIST)
