# SPDX-License-Identifier: Apache-2.0
"""Fences, posts and what they carry. Lengths in metres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.street.canvas import Canvas, Colour, dimmed
from sparserefine_ros.data.street.things import (
    FENCE,
    POLE,
    SIGN,
    THINNEST_PX,
    disc,
    stem,
    upright,
)

_SOLID_PX: Final = 5


@dataclass(frozen=True)
class Fence:
    """A straight fence along the street: railings let the picture through, boards do not."""

    lateral_m: float
    near_m: float
    far_m: float
    height_m: float
    colour: Colour
    boards: bool

    @property
    def order_m(self) -> float:
        """Painting order, see `Thing`."""
        return self.far_m

    def draw(self, canvas: Canvas) -> None:
        """Paint it into the picture and the labels."""
        near = max(self.near_m, canvas.camera.along_m + 1.0)
        if self.far_m <= near:
            return
        corners = upright(self.lateral_m, near, self.lateral_m, self.far_m, 0.0, self.height_m)
        pixels = canvas.camera.project(corners)
        if not canvas.on_screen(pixels):
            return
        colour = canvas.lit(self.colour, near, facing=0.4)
        breadth = abs(pixels[1, 0] - pixels[0, 0])
        if self.boards or breadth < _SOLID_PX:
            canvas.polygon(pixels, colour, FENCE)
        else:
            canvas.mark(pixels, FENCE)
            self._draw_rails(canvas, near, colour)
        spacing = 0.18 if self.boards else 0.14
        if breadth > 2 * (self.far_m - near) / spacing:
            dark = canvas.lit(dimmed(self.colour, 0.7), near, facing=0.4)
            self._draw_bars(canvas, near, spacing, dark if self.boards else colour)
        elif breadth >= _SOLID_PX and not self.boards:
            _veil(canvas, pixels, colour)

    def _draw_bars(self, canvas: Canvas, near_m: float, spacing_m: float, colour: Colour) -> None:
        first, last = np.ceil(near_m / spacing_m), np.floor(self.far_m / spacing_m)
        feet = np.zeros((max(int(last - first) + 1, 0), 3))
        feet[:, 0] = self.lateral_m
        feet[:, 2] = (first + np.arange(len(feet))) * spacing_m
        tops = feet + np.array([0.0, self.height_m, 0.0])
        width_px = 0.022 * canvas.camera.scale_px(near_m)
        for foot, top in zip(canvas.camera.project(feet), canvas.camera.project(tops), strict=True):
            canvas.line(np.stack([foot, top]), colour, width_px)

    def _draw_rails(self, canvas: Canvas, near_m: float, colour: Colour) -> None:
        for up in (0.12, self.height_m - 0.03):
            ends = [(self.lateral_m, up, near_m), (self.lateral_m, up, self.far_m)]
            width_px = 0.04 * canvas.camera.scale_px(near_m)
            canvas.line(canvas.camera.project(ends), colour, width_px)


def _veil(canvas: Canvas, pixels: NDArray[np.float64], colour: Colour) -> None:
    """Bars too far to tell apart: every other pixel column of their area."""
    left, right = sorted((pixels[0, 0], pixels[1, 0]))
    width = canvas.camera.width
    for column in range(max(0, int(left)), min(width, int(right) + 1), 2):
        share = (column - pixels[0, 0]) / ((pixels[1, 0] - pixels[0, 0]) or 1.0)
        share = min(max(share, 0.0), 1.0)
        top = pixels[0, 1] + share * (pixels[1, 1] - pixels[0, 1])
        bottom = pixels[3, 1] + share * (pixels[2, 1] - pixels[3, 1])
        canvas.line(np.array([[column, top], [column, bottom]]), colour, 1.0)


@dataclass(frozen=True)
class Pole:
    """A post; what it carries is drawn on top of it.

    Attributes:
        arm_m: lamp arm's reach, positive to the right; 0 for none.
        head: what hangs on the post.
        plate_rgb: sign plate's face colour.
    """

    lateral_m: float
    far_m: float
    height_m: float
    width_m: float
    colour: Colour
    arm_m: float = 0.0
    head: Literal["none", "round", "triangle", "board", "lights"] = "none"
    plate_rgb: Colour = (0.0, 0.0, 0.0)
    lit_lamp: int = 0

    @property
    def order_m(self) -> float:
        """Painting order, see `Thing`."""
        return self.far_m

    def draw(self, canvas: Canvas) -> None:
        """Paint it into the picture and the labels."""
        if self.far_m - canvas.camera.along_m < 1.0:
            return
        colour = canvas.lit(self.colour, self.far_m, facing=0.4)
        span = (0.0, self.height_m)
        stem(canvas, self.lateral_m, self.far_m, span, self.width_m, colour, POLE)
        if self.arm_m:
            self._draw_arm(canvas, colour)
        if self.head == "lights":
            self._draw_lights(canvas)
        elif self.head != "none":
            self._draw_plate(canvas)

    def _draw_arm(self, canvas: Canvas, colour: Colour) -> None:
        top, tip = self.height_m, self.lateral_m + self.arm_m
        thick = max(0.07, THINNEST_PX / canvas.camera.scale_px(self.far_m))
        outline = [
            (self.lateral_m, top - thick, self.far_m),
            (self.lateral_m, top, self.far_m),
            (tip, top + 0.35, self.far_m),
            (tip, top + 0.35 - thick, self.far_m),
        ]
        canvas.surface(outline, colour, POLE)
        lamp = upright(tip - 0.35, self.far_m, tip + 0.35, self.far_m, top + 0.25, top + 0.42)
        canvas.surface(lamp, canvas.lit((150, 150, 145), self.far_m), POLE)

    def _draw_lights(self, canvas: Canvas) -> None:
        low, along = self.height_m - 0.95, self.far_m
        case = upright(self.lateral_m - 0.17, along, self.lateral_m + 0.17, along, low, low + 1.0)
        canvas.surface(case, canvas.lit((22, 24, 24), along), SIGN)
        lamps = ((255.0, 50.0, 35.0), (255.0, 175.0, 40.0), (60.0, 255.0, 170.0))
        for index, lamp in enumerate(lamps):
            up = low + 0.82 - 0.32 * index
            colour = lamp if index == self.lit_lamp else canvas.lit(dimmed(lamp, 0.16), along)
            canvas.surface(disc(self.lateral_m, up, along, 0.105, 12), colour, None)

    def _draw_plate(self, canvas: Canvas) -> None:
        up, along = self.height_m - 0.38, self.far_m
        rim = canvas.lit((205, 30, 35), along, facing=0.3)
        face = canvas.lit(self.plate_rgb, along, facing=0.3)
        if self.head == "board":
            wide = upright(
                self.lateral_m - 0.6, along, self.lateral_m + 0.6, along, up - 0.42, up + 0.42
            )
            canvas.surface(wide, canvas.lit((225, 225, 225), along, facing=0.3), SIGN)
            inner = upright(
                self.lateral_m - 0.56, along, self.lateral_m + 0.56, along, up - 0.38, up + 0.38
            )
            canvas.surface(inner, face, None)
            for row in (0.18, -0.1):
                text = upright(
                    self.lateral_m - 0.4,
                    along,
                    self.lateral_m + 0.25,
                    along,
                    up + row - 0.05,
                    up + row + 0.05,
                )
                canvas.surface(text, canvas.lit((235, 235, 235), along, facing=0.3), None)
            return
        corners = 18 if self.head == "round" else 3
        turn = 0.0 if self.head == "round" else np.pi / 2
        radius = 0.34 if self.head == "round" else 0.42
        canvas.surface(disc(self.lateral_m, up, along, radius, corners, turn), rim, SIGN)
        canvas.surface(disc(self.lateral_m, up, along, radius * 0.72, corners, turn), face, None)
