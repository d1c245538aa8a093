# SPDX-License-Identifier: Apache-2.0
"""Things that stand along the procedural street and paint themselves. Lengths in metres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.street.canvas import Canvas, Colour, dimmed
from sparserefine_ros.data.street.textures import (
    FacadeLook,
    Sprite,
    facade_texture,
    foliage_texture,
)

SKY, BUILDING, POLE, ROAD, SIDEWALK, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
THINNEST_PX: Final = 0.5
_MOST_TEXELS: Final = 640
_PLAIN_PX: Final = 12
_SOLID_PX: Final = 5


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
            corners = _upright(left, near, right, near, 0.0, self.height_m)
            self._draw_wall(canvas, corners, self.depth_m, 0.35, near, plain=not self.end_shows)
        length = self.far_m - self.near_m
        hidden = max(canvas.camera.first_seen_m(self.lateral_m) - self.near_m, 0.0)
        skip = min(math.floor(hidden / length * self.look.bays(length)), self.look.bays(length) - 1)
        start = self.near_m + length * skip / self.look.bays(length)
        first, last = (self.far_m, start) if outward > 0 else (start, self.far_m)
        corners = _upright(self.lateral_m, first, self.lateral_m, last, 0.0, self.height_m)
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
        stack = _upright(ridge_m - 0.5, stack_far, ridge_m + 0.5, stack_far, top - 1.0, top + 1.2)
        canvas.surface(stack, canvas.lit(self.look.wall_rgb, near_m, facing=0.2), BUILDING)


def _steady(size_px: float) -> float:
    """Size in half-octave steps, so that a texture keeps its texels from frame to frame."""
    return min(math.exp2(round(2 * math.log2(max(size_px, 3.0))) / 2), _MOST_TEXELS)


def _upright(
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


@dataclass(frozen=True)
class Tree:
    """Trunk and crown; `ramp` [256, 3] colours the crown from dark to lit."""

    lateral_m: float
    far_m: float
    height_m: float
    crown_m: float
    trunk_m: float
    sprite: Sprite
    ramp: NDArray[np.uint8]
    trunk_rgb: Colour

    @property
    def order_m(self) -> float:
        """Painting order, see `Thing`."""
        return self.far_m

    def draw(self, canvas: Canvas) -> None:
        """Paint it into the picture and the labels."""
        distance = self.far_m - canvas.camera.along_m
        if distance < 2.0:
            return
        colour = canvas.lit(self.trunk_rgb, self.far_m, facing=0.3)
        stem(
            canvas,
            self.lateral_m,
            self.far_m,
            (0.0, self.height_m * 0.5),
            self.trunk_m,
            colour,
            TREE,
        )
        column, row, scale = canvas.camera.foot(self.lateral_m, self.far_m)
        top, bottom = (
            row - self.height_m * scale,
            row - (self.height_m - self.crown_m * 1.1) * scale,
        )
        half = self.crown_m / 2 * scale
        ramp = canvas.toned(self.ramp[None], self.far_m, 0.5)[0]
        canvas.sprite((column - half, top, column + half, bottom), self.sprite, ramp, TREE)


@dataclass(frozen=True)
class Hedge:
    """A clipped hedge along the street."""

    lateral_m: float
    near_m: float
    far_m: float
    height_m: float
    ramp: NDArray[np.uint8]

    @property
    def order_m(self) -> float:
        """Painting order, see `Thing`."""
        return self.far_m

    def draw(self, canvas: Canvas) -> None:
        """Paint it into the picture and the labels."""
        near = max(self.near_m, canvas.camera.along_m + 1.0)
        if self.far_m <= near:
            return
        first, last = (self.far_m, near) if self.lateral_m > 0 else (near, self.far_m)
        corners = _upright(self.lateral_m, first, self.lateral_m, last, 0.0, self.height_m)
        pixels = canvas.camera.project(corners)
        if not canvas.on_screen(pixels):
            return
        columns, rows = np.ptp(pixels, axis=0)
        texture = foliage_texture(self.ramp, columns, rows * 0.7)
        canvas.textured(pixels, canvas.toned(texture, near, 0.4), TREE)


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
        corners = _upright(self.lateral_m, near, self.lateral_m, self.far_m, 0.0, self.height_m)
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
        lamp = _upright(tip - 0.35, self.far_m, tip + 0.35, self.far_m, top + 0.25, top + 0.42)
        canvas.surface(lamp, canvas.lit((150, 150, 145), self.far_m), POLE)

    def _draw_lights(self, canvas: Canvas) -> None:
        low, along = self.height_m - 0.95, self.far_m
        case = _upright(self.lateral_m - 0.17, along, self.lateral_m + 0.17, along, low, low + 1.0)
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
            wide = _upright(
                self.lateral_m - 0.6, along, self.lateral_m + 0.6, along, up - 0.42, up + 0.42
            )
            canvas.surface(wide, canvas.lit((225, 225, 225), along, facing=0.3), SIGN)
            inner = _upright(
                self.lateral_m - 0.56, along, self.lateral_m + 0.56, along, up - 0.38, up + 0.38
            )
            canvas.surface(inner, face, None)
            for row in (0.18, -0.1):
                text = _upright(
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
