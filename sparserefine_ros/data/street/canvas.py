# SPDX-License-Identifier: Apache-2.0
"""Camera, light and canvas of the procedural street; shapes go to picture and labels at once.

Street coordinates are metres (lateral, up, along): lateral grows to the right of the road's
centre line, up from the road surface, along in driving direction.
Shapes: H, W picture; N points. Pixel positions are (column, row) with pixel centres at integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparserefine_ros.data.street.textures import Sprite

Colour = tuple[float, float, float]
Floats = NDArray[np.float64]

NEAREST_M = 0.6
FARTHEST_M = 220.0
_SHIFT = 5


@dataclass(frozen=True)
class Bend:
    """The road's centre line swings by amplitude_m * sin(2 pi along / period_m + phase_rad)."""

    amplitude_m: float
    period_m: float
    phase_rad: float

    def offset_m(self, along_m: Floats | float) -> Floats:
        """Sideways offset of the centre line, metres."""
        angle = np.asarray(along_m) * (2 * np.pi / self.period_m) + self.phase_rad
        return np.asarray(self.amplitude_m * np.sin(angle))

    def slope(self, along_m: float) -> float:
        """Metres sideways per metre along."""
        rate = 2 * np.pi / self.period_m
        return float(self.amplitude_m * rate * np.cos(along_m * rate + self.phase_rad))


@dataclass(frozen=True)
class Light:
    """Light of a scene; colours are RGB 0..255, gains multiply them.

    Attributes:
        sun_gain: added on surfaces turned to the sun.
        ambient_gain: reaches every surface.
        sun_side: -1 where the sun stands to the left, +1 to the right.
        shadow: 0..1, how much of the light a cast shadow takes away.
        haze_rgb: colour that distance fades to.
        haze_m: distance over which contrast falls to 1/e.
    """

    sun_gain: float
    ambient_gain: float
    sun_side: int
    shadow: float
    haze_rgb: Colour
    haze_m: float


@dataclass(frozen=True)
class Camera:
    """Pinhole camera that follows the bending road.

    Attributes:
        height, width: picture size in pixels.
        focal_px: focal length in pixels.
        lateral_m, up_m, along_m: position in street coordinates.
        pitch_rad: positive looks down.
        yaw_rad: positive looks right.
    """

    height: int
    width: int
    focal_px: float
    lateral_m: float
    up_m: float
    along_m: float
    pitch_rad: float
    yaw_rad: float
    bend: Bend

    @cached_property
    def horizon_px(self) -> float:
        """Row of the horizon."""
        return self.height / 2 - self.focal_px * math.tan(self.pitch_rad) - 0.5

    @cached_property
    def _tilt(self) -> tuple[float, float]:
        return math.cos(self.pitch_rad), math.sin(self.pitch_rad)

    @cached_property
    def _track(self) -> tuple[float, float]:
        """Offset of the centre line below the camera, and where the camera heads."""
        heading = self.bend.slope(self.along_m) + self.yaw_rad
        return float(self.bend.offset_m(self.along_m)) + self.lateral_m, heading

    def sideways_m(self, lateral_m: Floats | float, along_m: Floats | float) -> Floats:
        """Lateral positions relative to the optical axis, the bend unrolled."""
        start, heading = self._track
        drift = self.bend.offset_m(along_m) - start
        return np.asarray(lateral_m + drift - heading * (along_m - self.along_m))

    def project(self, points: ArrayLike) -> Floats:
        """[N, 3] metres to [N, 2] pixels; what lies behind the camera is held at NEAREST_M."""
        lateral, up, along = np.asarray(points, np.float64).T
        along = np.maximum(along, self.along_m + NEAREST_M)
        right = self.sideways_m(lateral, along)
        above, ahead = up - self.up_m, along - self.along_m
        cosine, sine = self._tilt
        per_m = self.focal_px / np.maximum(ahead * cosine - above * sine, 0.2)
        pixels = np.empty((len(along), 2))
        pixels[:, 0] = (self.width - 1) / 2 + per_m * right
        pixels[:, 1] = (self.height - 1) / 2 - per_m * (ahead * sine + above * cosine)
        return pixels

    def foot(self, lateral_m: float, along_m: float) -> tuple[float, float, float]:
        """Column and row of a point of the road, and pixels per metre there."""
        along = max(along_m, self.along_m + NEAREST_M)
        ahead = along - self.along_m
        start, heading = self._track
        bend = self.bend.amplitude_m * math.sin(
            along * (2 * math.pi / self.bend.period_m) + self.bend.phase_rad
        )
        cosine, sine = self._tilt
        per_m = self.focal_px / max(ahead * cosine + self.up_m * sine, 0.2)
        column = (self.width - 1) / 2 + per_m * (lateral_m + bend - start - heading * ahead)
        row = (self.height - 1) / 2 - per_m * (ahead * sine - self.up_m * cosine)
        return column, row, per_m

    def scale_px(self, along_m: float) -> float:
        """Pixels per metre at a distance along the street."""
        return self.focal_px / max(along_m - self.along_m, NEAREST_M)

    def first_seen_m(self, lateral_m: float) -> float:
        """Where along the street a line at lateral_m enters the picture, a little generously."""
        widest = self.width / 2 / self.focal_px + 0.12
        return self.along_m + max(abs(lateral_m - self.lateral_m) * 0.85 / widest, 1.0)


@dataclass(frozen=True)
class Board:
    """An upright plane facing the camera; `put` takes (right, up) in metres to pixels."""

    column: float
    row: float
    scale_px: float

    def put(self, outline: ArrayLike) -> Floats:
        """[N, 2] metres to [N, 2] pixels."""
        pixels = np.array(outline, np.float64)
        pixels[:, 0] = self.column + self.scale_px * pixels[:, 0]
        pixels[:, 1] = self.row - self.scale_px * pixels[:, 1]
        return pixels


class Canvas:
    """Picture and labels that are drawn together, far things first.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        labels: uint8 [H, W], class ids.
    """

    def __init__(self, camera: Camera, light: Light) -> None:
        self.camera = camera
        self.light = light
        self.image = np.zeros((camera.height, camera.width, 3), np.uint8)
        self.labels = np.full((camera.height, camera.width), 255, np.uint8)

    def lit(self, colour: Colour, along_m: float, *, facing: float = 0.0) -> Colour:
        """Colour of a surface as the camera sees it; facing 0..1 is how far it turns to the sun."""
        gain = self.light.ambient_gain + self.light.sun_gain * facing
        clear = self.clearness(along_m)
        dim = 1 - clear
        haze = self.light.haze_rgb
        return (
            min(colour[0] * gain, 255.0) * clear + haze[0] * dim,
            min(colour[1] * gain, 255.0) * clear + haze[1] * dim,
            min(colour[2] * gain, 255.0) * clear + haze[2] * dim,
        )

    def toned(self, texture: NDArray[np.uint8], along_m: float, facing: float) -> NDArray[np.uint8]:
        """Light and haze on a whole texture or colour ramp, uint8 [h, w, 3]."""
        black = np.array(self.lit((0.0, 0.0, 0.0), along_m, facing=facing))
        grey = np.array(self.lit((100.0, 100.0, 100.0), along_m, facing=facing))
        values = np.arange(256)[:, None] * ((grey - black) / 100.0) + black
        table = np.clip(values, 0, 255).astype(np.uint8)[None]
        return np.asarray(cv2.LUT(texture, table), np.uint8)

    def clearness(self, along_m: float) -> float:
        """Share of a surface's own colour that haze leaves, 0..1."""
        return math.exp(-max(along_m - self.camera.along_m, 0.0) / self.light.haze_m)

    def polygon(self, pixels: Floats, colour: Colour, label: int | None) -> None:
        """Fill [N, 2] pixel positions; with label None only the picture changes."""
        fixed = _fixed_point(pixels)
        if not self._touches(fixed):
            return
        outline = [fixed]
        cv2.fillPoly(self.image, outline, colour, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.fillPoly(self.labels, outline, (label,), cv2.LINE_8, _SHIFT)

    def mark(self, pixels: Floats, label: int) -> None:
        """Fill [N, 2] pixel positions in the labels only."""
        if self.on_screen(pixels):
            cv2.fillPoly(self.labels, [_fixed_point(pixels)], (label,), cv2.LINE_8, _SHIFT)

    def surface(self, points: ArrayLike, colour: Colour, label: int | None) -> None:
        """Fill a polygon given by [N, 3] metres."""
        self.polygon(self.camera.project(points), colour, label)

    def line(self, pixels: Floats, colour: Colour, width_px: float) -> None:
        """Draw [N, 2] pixel positions as a line in the picture only; under 1 px it fades."""
        if not self.on_screen(pixels):
            return
        thickness = max(1, round(width_px))
        cv2.polylines(
            self.image, [_fixed_point(pixels)], False, colour, thickness, cv2.LINE_AA, _SHIFT
        )

    def textured(self, pixels: Floats, texture: NDArray[np.uint8], label: int) -> None:
        """Stretch a uint8 [h, w, 3] texture over four corners, [4, 2] pixel positions.

        Corners follow the texture: top left, top right, bottom right, bottom left.
        """
        if not self.on_screen(pixels):
            return
        left, top, right, bottom = self._window(pixels)
        origin = np.array([left, top])
        rows, columns = texture.shape[:2]
        source = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]]) - 0.5
        matrix = cv2.getPerspectiveTransform(
            source.astype(np.float32), (pixels - origin).astype(np.float32)
        )
        size = (right - left, bottom - top)
        patch = cv2.warpPerspective(texture, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        mask = np.zeros((size[1], size[0]), np.uint8)
        cv2.fillConvexPoly(mask, _fixed_point(pixels - origin), (255,), cv2.LINE_8, _SHIFT)
        cv2.copyTo(patch, mask, self.image[top:bottom, left:right])
        cv2.fillConvexPoly(self.labels, _fixed_point(pixels), (label,), cv2.LINE_8, _SHIFT)

    def sprite(
        self, box: Sequence[float], sprite: Sprite, ramp: NDArray[np.uint8], label: int
    ) -> None:
        """Stretch a sprite over pixels (left, top, right, bottom); ramp [256, 3] colours it."""
        corners = np.array([[box[0], box[1]], [box[2], box[3]]], np.float64)
        if not self.on_screen(corners):
            return
        left, top, right, bottom = self._window(corners)
        plane = sprite.level(box[2] - box[0])
        step = (corners[1] - corners[0]) / plane.shape[1::-1]
        shift = corners[0] - (left, top) + step / 2
        matrix = np.array([[step[0], 0, shift[0]], [0, step[1], shift[1]]])
        patch = cv2.warpAffine(plane, matrix, (right - left, bottom - top))
        cover, shade, region = cv2.split(patch)
        weight = np.clip(cover.astype(np.float32) / 96 - 0.83, 0, 1)
        target = self.image[top:bottom, left:right]
        target[:] = cv2.blendLinear(ramp[shade], target, weight, 1 - weight)
        self.labels[top:bottom, left:right][region > 127] = label

    def on_screen(self, pixels: Floats) -> bool:
        """Whether the box around [N, 2] positions touches the picture."""
        return self._touches(_fixed_point(pixels))

    def _touches(self, fixed: NDArray[np.int32]) -> bool:
        left, top, width, height = cv2.boundingRect(fixed)
        one = 1 << _SHIFT
        return (
            left + width > -one
            and top + height > -one
            and left < self.camera.width * one
            and top < self.camera.height * one
        )

    def _window(self, pixels: Floats) -> tuple[int, int, int, int]:
        """Smallest box of whole pixels around the positions, cut at the picture's edge."""
        height, width = self.labels.shape
        left, top = np.clip(np.floor(pixels.min(axis=0)), 0, (width - 1, height - 1)).astype(int)
        right, bottom = np.clip(np.ceil(pixels.max(axis=0)) + 1, 1, (width, height)).astype(int)
        return int(left), int(top), max(int(right), int(left) + 1), max(int(bottom), int(top) + 1)


def _fixed_point(pixels: Floats) -> NDArray[np.int32]:
    return np.rint(pixels * (1 << _SHIFT)).astype(np.int32)


def box(left: float, low: float, right: float, high: float) -> list[tuple[float, float]]:
    """Corners of a rectangle, (right, up)."""
    return [(left, low), (right, low), (right, high), (left, high)]


def dimmed(colour: Colour, gain: float) -> Colour:
    """Colour times gain."""
    return colour[0] * gain, colour[1] * gain, colour[2] * gain
