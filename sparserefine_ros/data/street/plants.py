# SPDX-License-Identifier: Apache-2.0
"""Trees and hedges along the procedural street. Lengths in metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.street.canvas import Canvas, Colour
from sparserefine_ros.data.street.textures import (
    Sprite,
    foliage_texture,
)
from sparserefine_ros.data.street.things import (
    TREE,
    stem,
    upright,
)


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
        corners = upright(self.lateral_m, first, self.lateral_m, last, 0.0, self.height_m)
        pixels = canvas.camera.project(corners)
        if not canvas.on_screen(pixels):
            return
        columns, rows = np.ptp(pixels, axis=0)
        texture = foliage_texture(self.ramp, columns, rows * 0.7)
        canvas.textured(pixels, canvas.toned(texture, near, 0.4), TREE)
