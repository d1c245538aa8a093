# SPDX-License-Identifier: Apache-2.0
"""Cars, vans and buses of the procedural street. Lengths in metres."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.street.canvas import Board, Canvas, Colour, box, dimmed
from sparserefine_ros.data.street.things import CAR

CarShape = Literal["hatch", "saloon", "van", "bus"]
_GLASS: Final[Colour] = (38.0, 44.0, 50.0)
_TYRE: Final[Colour] = (20.0, 20.0, 21.0)
_SHEEN: Final[Colour] = (84.0, 92.0, 100.0)
_SKIRT: Final = np.array([(0.0, 0.3), (0.0, 0.48), (1.0, 0.48), (1.0, 0.3)])
_ANGLES: Final = np.arange(14) * (2 * np.pi / 14)
_CIRCLE: Final = np.stack([np.sin(_ANGLES), np.cos(_ANGLES)], axis=1)
_FAR_PX: Final = 12.0


@dataclass(frozen=True)
class _Profile:
    """Side view from rear to front: outline and windows as (share of length, metres up)."""

    outline: tuple[tuple[float, float], ...]
    windows: tuple[tuple[tuple[float, float], ...], ...]
    rear_glass: int
    front_glass: int
    belt_m: float

    @cached_property
    def outline_array(self) -> NDArray[np.float64]:
        """Outline as [N, 2]."""
        return np.array(self.outline)

    def facing(self, strip: int, length_m: float) -> float:
        """How far a strip of the body turns to the sky, 0.25..1."""
        (start, low), (end, high) = self.outline[strip : strip + 2]
        run, rise = abs(end - start) * length_m, abs(high - low)
        return 0.25 + 0.75 * run / (rise + run)


_PROFILES: Final[dict[CarShape, _Profile]] = {
    "hatch": _Profile(
        ((0.01, 0.3), (0, 0.62), (0.02, 0.95), (0.1, 1.40), (0.2, 1.48), (0.52, 1.47), (0.73, 0.98),
         (0.95, 0.78), (1.0, 0.58), (0.99, 0.3)),
        (((0.09, 1.0), (0.15, 1.36), (0.36, 1.4), (0.36, 0.97)),
         ((0.385, 0.97), (0.385, 1.4), (0.51, 1.39), (0.67, 0.99))),
        2, 5, 0.96,
    ),
    "saloon": _Profile(
        ((0.01, 0.3), (0, 0.65), (0.02, 0.92), (0.16, 0.98), (0.3, 1.38), (0.57, 1.4), (0.74, 0.96),
         (0.96, 0.76), (1.0, 0.55), (0.99, 0.3)),
        (((0.22, 1.0), (0.32, 1.3), (0.45, 1.33), (0.45, 0.96)),
         ((0.47, 0.96), (0.47, 1.33), (0.56, 1.32), (0.69, 0.97))),
        3, 5, 0.94,
    ),
    "van": _Profile(
        ((0.0, 0.35), (0, 1.0), (0.02, 2.0), (0.06, 2.15), (0.7, 2.12), (0.86, 1.25), (0.98, 1.0),
         (1.0, 0.6), (0.99, 0.35)),
        (((0.64, 1.25), (0.64, 1.85), (0.72, 1.85), (0.82, 1.27)),),
        1, 4, 1.2,
    ),
    "bus": _Profile(
        ((0.0, 0.35), (0, 1.3), (0.01, 2.9), (0.03, 3.05), (0.97, 3.05), (1.0, 1.2), (1.0, 0.35)),
        tuple(
            ((0.03 + 0.156 * k, 1.3), (0.03 + 0.156 * k, 2.4), (0.17 + 0.156 * k, 2.4),
             (0.17 + 0.156 * k, 1.3))
            for k in range(6)
        ),
        1, 4, 1.2,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Car:
    """A car between `near_m` and `far_m`; `oncoming` shows its front."""

    lateral_m: float
    near_m: float
    length_m: float
    width_m: float
    shape: CarShape
    colour: Colour
    oncoming: bool
    lamps_on: bool

    @property
    def far_m(self) -> float:
        """Where along the street its farther end is."""
        return self.near_m + self.length_m

    @property
    def order_m(self) -> float:
        """Painting order, see `Thing`."""
        return self.near_m

    def draw(self, canvas: Canvas) -> None:
        """Paint it into the picture and the labels."""
        camera = canvas.camera
        if self.far_m < camera.along_m + 1.2:
            return
        profile = _PROFILES[self.shape]
        offset = float(camera.sideways_m(self.lateral_m, self.near_m))
        side = 0 if abs(offset) < self.width_m / 2 else (-1 if offset > 0 else 1)
        shells = np.concatenate([self._shell(profile.outline_array, end) for end in (-1, 1)])
        left, right = np.split(camera.project(shells), 2)
        if not canvas.on_screen(np.concatenate([left, right])):
            return
        column, row, scale = camera.foot(self.lateral_m, self.near_m)
        end = Board(column, row, scale)
        self._draw_underside(canvas, end)
        if scale < _FAR_PX:
            self._draw_far(canvas, profile, left, right)
            return
        self._draw_body(canvas, profile, left, right)
        self._draw_end(canvas, end)
        if side:
            self._draw_side(canvas, profile, left if side < 0 else right, side)

    def _draw_far(
        self,
        canvas: Canvas,
        profile: _Profile,
        left: NDArray[np.float64],
        right: NDArray[np.float64],
    ) -> None:
        """Silhouette and one window, for cars of a few pixels."""
        both = np.concatenate([left, right]).astype(np.float32)
        hull = cv2.convexHull(both)[:, 0].astype(np.float64)
        canvas.polygon(hull, canvas.lit(self.colour, self.near_m, facing=0.35), CAR)
        k = profile.front_glass if self.oncoming else profile.rear_glass
        quad = np.array([left[k], left[k + 1], right[k + 1], right[k]])
        pane = quad + (quad.mean(axis=0) - quad) * 0.15
        canvas.polygon(pane, canvas.lit(_GLASS, self.near_m, facing=0.2), None)

    def _shell(self, outline: NDArray[np.float64], side: int) -> NDArray[np.float64]:
        """Outline [N, 2] set at one side of the body, [N, 3]; the cabin leans in."""
        up = outline[:, 1]
        lean = 0.16 if self.shape in ("hatch", "saloon") else 0.05
        half = self.width_m / 2 - lean * np.clip((up - _PROFILES[self.shape].belt_m) / 0.5, 0, 1)
        share = 1 - outline[:, 0] if self.oncoming else outline[:, 0]
        points = np.empty((len(outline), 3))
        points[:, 0] = self.lateral_m + side * half
        points[:, 1] = up
        points[:, 2] = self.near_m + share * self.length_m
        return points

    def _draw_body(
        self,
        canvas: Canvas,
        profile: _Profile,
        left: NDArray[np.float64],
        right: NDArray[np.float64],
    ) -> None:
        """The strips between the two sides, far ones first; [N, 2] pixels each side."""
        strips = range(len(left) - 1)
        for k in strips if self.oncoming else reversed(strips):
            quad = np.array([left[k], left[k + 1], right[k + 1], right[k]])
            colour = canvas.lit(self.colour, self.near_m, facing=profile.facing(k, self.length_m))
            canvas.polygon(quad, colour, CAR)
            if k == (profile.front_glass if self.oncoming else profile.rear_glass):
                self._draw_glass(canvas, quad[[1, 0, 3, 2]] if self.oncoming else quad)

    def _draw_glass(self, canvas: Canvas, quad: NDArray[np.float64]) -> None:
        """Window on a strip given as low left, high left, high right, low right pixels."""
        if self.shape == "van" and not self.oncoming:
            return
        low_left, high_left, high_right, low_right = quad

        def at(across: float, up: float) -> NDArray[np.float64]:
            bottom = low_left + (low_right - low_left) * across
            top = high_left + (high_right - high_left) * across
            return np.asarray(bottom + (top - bottom) * up)

        pane = np.array([at(0.06, 0.1), at(0.94, 0.1), at(0.92, 0.92), at(0.08, 0.92)])
        canvas.polygon(pane, canvas.lit(_GLASS, self.near_m, facing=0.2), None)
        if np.ptp(quad[:, 1]) > 5:
            sheen = np.array([at(0.1, 0.55), at(0.75, 0.9), at(0.9, 0.9), at(0.08, 0.9)])
            canvas.polygon(sheen, canvas.lit(_SHEEN, self.near_m, facing=0.3), None)

    def _draw_underside(self, canvas: Canvas, end: Board) -> None:
        half = self.width_m / 2
        below = [(-half + 0.06, 0.16), (half - 0.06, 0.16), (half - 0.06, 0.4), (0.06 - half, 0.4)]
        canvas.polygon(end.put(below), canvas.lit((12, 12, 13), self.near_m), CAR)
        tyre = canvas.lit(_TYRE, self.near_m)
        for centre in (0.13 - half, half - 0.13):
            canvas.polygon(end.put(box(centre - 0.1, 0.0, centre + 0.1, 0.4)), tyre, CAR)

    def _draw_end(self, canvas: Canvas, end: Board) -> None:
        """Bumper, lamps and plate of the end that the camera sees."""
        half, along = self.width_m / 2, self.near_m
        lamp = canvas.lit((225, 225, 218) if self.oncoming else (150, 22, 20), along, facing=0.2)
        if self.lamps_on:
            lamp = (255, 252, 235) if self.oncoming else (245, 50, 40)
        low, high = (0.58, 0.72) if self.oncoming else (0.68, 0.86)
        wide = 0.17 if self.oncoming else 0.11
        for centre in (wide + 0.03 - half, half - 0.03 - wide):
            canvas.polygon(end.put(box(centre - wide, low, centre + wide, high)), lamp, None)
        bumper = canvas.lit(dimmed(self.colour, 0.5), along, facing=0.2)
        canvas.polygon(end.put(box(0.03 - half, 0.3, half - 0.03, 0.46)), bumper, None)
        if self.oncoming:
            canvas.polygon(
                end.put(box(-0.42, 0.52, 0.42, 0.66)), canvas.lit((24, 25, 27), along), None
            )
        number: Colour = (215, 215, 210) if self.oncoming else (206, 180, 70)
        up = 0.36 if self.oncoming else 0.5
        canvas.polygon(
            end.put(box(-0.26, up, 0.26, up + 0.11)), canvas.lit(number, along, facing=0.2), None
        )

    def _draw_side(
        self, canvas: Canvas, profile: _Profile, body: NDArray[np.float64], side: int
    ) -> None:
        along = self.near_m
        sunny = 0.5 if canvas.light.sun_side == side else 0.05
        canvas.polygon(body, canvas.lit(self.colour, along, facing=sunny), CAR)
        parts = [_SKIRT, *(np.array(window) for window in profile.windows)]
        ends = np.cumsum([len(part) for part in parts])[:-1]
        pixels = canvas.camera.project(self._shell(np.concatenate(parts), side))
        skirt, *windows = np.split(pixels, ends)
        canvas.polygon(skirt, canvas.lit(dimmed(self.colour, 0.6), along, facing=sunny), None)
        glass = canvas.lit(_GLASS, along, facing=0.3)
        for window in windows:
            canvas.polygon(window, glass, None)
        for share in (0.18, 0.82):
            self._draw_wheel(canvas, share, side)

    def _draw_wheel(self, canvas: Canvas, share: float, side: int) -> None:
        radius = 0.48 if self.shape == "bus" else 0.33
        centre = self.near_m + (1 - share if self.oncoming else share) * self.length_m
        wheel = np.empty((28, 3))
        wheel[:, 0] = self.lateral_m + side * self.width_m / 2
        wheel[:14, 1:] = (radius, centre) + radius * _CIRCLE
        wheel[14:, 1:] = (radius, centre) + 0.6 * radius * _CIRCLE
        pixels = canvas.camera.project(wheel)
        canvas.polygon(pixels[:14], canvas.lit(_TYRE, self.near_m), CAR)
        canvas.polygon(pixels[14:], canvas.lit((120, 122, 125), self.near_m, facing=0.2), None)
