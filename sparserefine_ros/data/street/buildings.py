# SPDX-License-Identifier: Apache-2.0
"""Houses along the procedural street. Lengths in metres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from sparserefine_ros.data.street.canvas import Canvas, Colour, dimmed
from sparserefine_ros.data.street.textures import (
    FacadeLook,
    facade_texture,
)
from sparserefine_ros.data.street.things import (
    BUILDING,
    upright,
)

_MOST_TEXELS: Final = 640
_PLAIN_PX: Final = 12


@dataclass(frozen=True)
class Building:
    """A box whose facade at `lateral_m` faces the street; `rise_m` 0 means a flat roof."""

    lateral_m: float
    near_m: float
    far_m: float
    height_m: float
    depth_m: float
    rise_m: float
    roof_rgb: Colour
    end_shows: bool
    look: FacadeLook

    @property
    def order_m(self) -> float:
        """Painting order, see `Thing`."""
        return self.far_m

    def draw(self, canvas: Canvas) -> None:
        """Paint it into the picture and the labels."""
        along = canvas.camera.along_m
        outward = 1.0 if self.lateral_m > 0 else -1.0
        back = self.lateral_m + outward * self.depth_m
        near = max(self.near_m, along + 1.0)
        if self.far_m <= near + 0.1:
            return
        if self.rise_m > 0:
            self._draw_roof(canvas, near, back)
        left, right = sorted((self.lateral_m, back))
        if self.near_m > along + 1.0:
            corners = upright(left, near, right, near, 0.0, self.height_m)
            self._draw_wall(canvas, corners, self.depth_m, 0.35, near, plain=not self.end_shows)
        length = self.far_m - self.near_m
        hidden = max(canvas.camera.first_seen_m(self.lateral_m) - self.near_m, 0.0)
        skip = min(math.floor(hidden / length * self.look.bays(length)), self.look.bays(length) - 1)
        start = self.near_m + length * skip / self.look.bays(length)
        first, last = (self.far_m, start) if outward > 0 else (start, self.far_m)
        corners = upright(self.lateral_m, first, self.lateral_m, last, 0.0, self.height_m)
        facing = 0.85 if canvas.light.sun_side != outward else 0.0
        self._draw_wall(canvas, corners, length, facing, min(start + 4, self.far_m), skip_bays=skip)

    def _draw_wall(
        self,
        canvas: Canvas,
        corners: list[list[float]],
        length_m: float,
        facing: float,
        along_m: float,
        *,
        skip_bays: int = 0,
        plain: bool = False,
    ) -> None:
        pixels = canvas.camera.project(corners)
        if not canvas.on_screen(pixels):
            return
        columns = abs(float(pixels[0, 0] - pixels[1, 0])) * 1.2
        rows = float(np.ptp(pixels[:, 1])) * 0.9
        if plain or columns < _PLAIN_PX:
            wall = dimmed(self.look.wall_rgb, 0.9 if plain else 0.75)
            canvas.polygon(pixels, canvas.lit(wall, along_m, facing=facing), BUILDING)
            return
        texture = facade_texture(
            self.look,
            length_m=length_m,
            height_m=self.height_m,
            skip_bays=skip_bays,
            columns_px=_steady(columns),
            rows_px=_steady(rows),
        )
        canvas.textured(pixels, canvas.toned(texture, along_m, facing), BUILDING)

    def _draw_roof(self, canvas: Canvas, near_m: float, back_m: float) -> None:
        ridge_m = (self.lateral_m + back_m) / 2
        top = self.height_m + self.rise_m
        slope = [
            (self.lateral_m, self.height_m, near_m),
            (self.lateral_m, self.height_m, self.far_m),
            (ridge_m, top, self.far_m),
            (ridge_m, top, near_m),
        ]
        canvas.surface(slope, canvas.lit(self.roof_rgb, near_m, facing=0.5), BUILDING)
        gable = [
            (self.lateral_m, self.height_m, near_m),
            (back_m, self.height_m, near_m),
            (ridge_m, top, near_m),
        ]
        canvas.surface(gable, canvas.lit(self.look.wall_rgb, near_m, facing=0.3), BUILDING)
        stack_far = near_m + 1.0
        stack = upright(ridge_m - 0.5, stack_far, ridge_m + 0.5, stack_far, top - 1.0, top + 1.2)
        canvas.surface(stack, canvas.lit(self.look.wall_rgb, near_m, facing=0.2), BUILDING)


def _steady(size_px: float) -> float:
    """Size in half-octave steps, so that a texture keeps its texels from frame to frame."""
    return min(math.exp2(round(2 * math.log2(max(size_px, 3.0))) / 2), _MOST_TEXELS)
