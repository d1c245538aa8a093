# SPDX-License-Identifier: Apache-2.0
"""Procedural street scenes with a class for every pixel, at any size.

Shapes: H, W picture. Every frame is a function of (seed, speed, time, H, W) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.street.canvas import FARTHEST_M, Camera, Canvas
from sparserefine_ros.data.street.ground import draw_backdrop, draw_ground, draw_sky
from sparserefine_ros.data.street.layout import moving_things, standing_things
from sparserefine_ros.data.street.style import Style, make_style, seeded
from sparserefine_ros.data.street.textures import sensor_noise

CLASS_NAMES: Final[tuple[str, ...]] = (
    "sky", "building", "pole", "road", "sidewalk", "tree",
    "sign_symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
# Those of CamVid, whose classes these are.
CLASS_COLOURS: Final[tuple[tuple[int, int, int], ...]] = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
SMALLEST_PX: Final = 16
LARGEST_PX: Final = 16384


@dataclass(frozen=True)
class StreetFrame:
    """One rendered view.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        labels: uint8 [H, W], index into CLASS_NAMES; 255 where unlabelled.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]


class StreetScene:
    """One seeded street; `render(time_s, height=, width=)` shows it from a car driving along it.

    Args:
        seed: any integer; equal seeds give equal streets.
        speed_mps: speed of the camera's car in metres per second.
    """

    def __init__(self, seed: int, *, speed_mps: float = 8.0) -> None:
        self._seed = int(seed)
        self._speed_mps = float(speed_mps)
        self._style = make_style(self._seed)

    def render(self, time_s: float, *, height: int, width: int) -> StreetFrame:
        """Show the street as it is `time_s` seconds after the start; negative times are fine.

        Args:
            time_s: seconds.
            height: rows, 16..16384.
            width: columns, 16..16384.

        Returns:
            RGB picture and class ids of that size.

        Raises:
            ValueError: a size is out of range, or the time is not finite.
        """
        if not math.isfinite(time_s):
            raise ValueError(
                f"time_s must be a finite number of seconds, got {time_s}; pass time since start"
            )
        _check_size("height", height)
        _check_size("width", width)
        style = self._style
        along_m = self._speed_mps * time_s
        canvas = Canvas(self._camera(time_s, height, width), style.light)
        things = standing_things(style, along_m)
        things += moving_things(style, time_s, along_m, self._speed_mps)
        draw_sky(canvas, style, time_s)
        draw_backdrop(canvas, style)
        draw_ground(canvas, style, things)
        for thing in sorted(things, key=lambda thing: -thing.order_m):
            if along_m < thing.far_m < along_m + FARTHEST_M:
                thing.draw(canvas)
        return StreetFrame(_expose(canvas.image, style, time_s), canvas.labels)

    def _camera(self, time_s: float, height: int, width: int) -> Camera:
        style = self._style
        bump = 0.0025 * np.sin(9.0 * time_s) + 0.0015 * np.sin(5.3 * time_s + 1)
        wander = 0.15 * np.sin(0.45 * time_s + self._seed % 7)
        return Camera(
            height=height,
            width=width,
            focal_px=style.focal_share * width,
            lateral_m=style.lane_m + float(wander),
            up_m=style.camera_up_m,
            along_m=self._speed_mps * time_s,
            pitch_rad=style.pitch_rad + float(bump),
            yaw_rad=0.012 * float(np.sin(0.31 * time_s + self._seed % 5)),
            bend=style.bend,
        )


def _check_size(name: str, size: int) -> None:
    if not SMALLEST_PX <= size <= LARGEST_PX:
        raise ValueError(
            f"{name} must be {SMALLEST_PX}..{LARGEST_PX} pixels, got {size}; "
            "render at a size within the limits and resize the result"
        )


def _expose(image: NDArray[np.uint8], style: Style, time_s: float) -> NDArray[np.uint8]:
    """Lens blur, tone curve, then sensor noise."""
    soft = cv2.GaussianBlur(image, (3, 3), 0.5)
    rng = seeded(style.seed, 31, int(np.floor(time_s * 1000)))
    exposure = style.exposure * (1 + 0.03 * float(np.sin(0.7 * time_s)))
    levels = np.arange(256)[:, None] / 255.0 * exposure
    levels = levels * np.array([1 + style.warmth, 1.0, 1 - style.warmth])
    curved = 0.3 + (levels - 0.3) * style.contrast
    table = np.clip(255 * curved, 0, 255).astype(np.uint8)[None]
    toned = cv2.LUT(soft, table)
    grain = sensor_noise()
    shifted = np.roll(grain, tuple(rng.integers(len(grain), size=2)), axis=(0, 1))
    noise = shifted.astype(np.int16) * int(rng.integers(10, 30)) // 128
    for row in range(0, image.shape[0], len(noise)):
        for column in range(0, image.shape[1], len(noise)):
            block = toned[row : row + len(noise), column : column + len(noise)]
            part = noise[: block.shape[0], : block.shape[1]]
            block[:] = cv2.add(block, part, dtype=cv2.CV_8U)
    return np.asarray(toned, np.uint8)
