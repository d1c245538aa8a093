# SPDX-License-Identifier: Apache-2.0
"""What stays the same along one seeded street: widths, weather, camera. Lengths in metres."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.street.canvas import Bend, Colour, Light

_WALLS: Final[tuple[Colour, ...]] = (
    (128, 84, 66), (112, 70, 56), (150, 128, 98), (168, 150, 118), (196, 188, 172), (178, 172, 160),
    (138, 132, 124), (104, 100, 98), (205, 196, 176), (96, 74, 62), (182, 160, 132), (88, 90, 94),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Style:
    """What stays the same along one street.

    Attributes:
        drive_side: -1 where traffic keeps left, +1 right.
        road_half_m: half the carriageway, parking lanes included.
        walk_m: width of each sidewalk.
        parking: share of parking places taken, left and right; 0 for no parking lane.
        tree_share, fence_share, crowd: densities, 0..1.
        block_weights: how likely terrace, houses, park and side road are.
        camera_up_m, pitch_rad, focal_share: camera; focal length as a share of the picture's width.
        exposure, contrast, warmth: tone of the picture; 1, 1 and 0 are neutral.
        cloud_share: 0 clear .. 1 overcast.
    """

    seed: int
    drive_side: int
    road_half_m: float
    walk_m: float
    parking: tuple[float, float]
    tree_share: float
    bare_trees: bool
    fence_share: float
    crowd: float
    traffic: float
    block_weights: tuple[float, float, float, float]
    storeys: tuple[float, float]
    walls: tuple[Colour, ...]
    foliage_ramp: NDArray[np.uint8]
    asphalt_rgb: Colour
    paving_rgb: Colour
    bend: Bend
    light: Light
    lamps_on: bool
    sky_top_rgb: Colour
    sky_low_rgb: Colour
    cloud_share: float
    exposure: float
    contrast: float
    warmth: float
    camera_up_m: float
    pitch_rad: float
    focal_share: float

    @property
    def line_m(self) -> float:
        """Distance from the centre line to the back edge of the sidewalk."""
        return self.road_half_m + self.walk_m

    @property
    def lane_m(self) -> float:
        """Lateral position of the camera's lane."""
        parked = 2.1 if self.parking[0 if self.drive_side < 0 else 1] > 0 else 0.0
        return self.drive_side * (self.road_half_m - parked) / 2


def seeded(seed: int, *tags: int) -> np.random.Generator:
    """Random numbers that depend on the seed and tags only; negative values are fine."""
    return np.random.default_rng([value & 0xFFFFFFFFFFFFFFFF for value in (seed, *tags)])


def pick_colour(
    rng: np.random.Generator, choices: tuple[Colour, ...], spread: float = 10.0
) -> Colour:
    """One of the colours, varied a little."""
    red, green, blue = choices[int(rng.integers(len(choices)))]
    shift = float(rng.normal(0, spread))
    jitter = rng.normal(0, spread / 3, 3) + shift
    return _colour(red + jitter[0], green + jitter[1], blue + jitter[2])


def _colour(red: float, green: float, blue: float) -> Colour:
    return (
        min(max(float(red), 8.0), 245.0),
        min(max(float(green), 8.0), 245.0),
        min(max(float(blue), 8.0), 245.0),
    )


@lru_cache(maxsize=64)
def make_style(seed: int) -> Style:
    """Draw one street's looks."""
    rng = seeded(seed, 1)
    weather = str(rng.choice(["sun", "overcast", "bright", "dusk"], p=[0.34, 0.28, 0.24, 0.14]))
    parking = [float(rng.uniform(0.25, 0.8)) if rng.uniform() < 0.42 else 0.0 for _ in range(2)]
    lanes_half = float(rng.uniform(2.9, 3.9))
    weights = rng.dirichlet([4.2, 3.4, 2.0, 1.1])
    low = float(rng.uniform(1.6, 3.0))
    bare = bool(rng.uniform() < 0.3)
    light, sky_top, sky_low, clouds, exposure = _weather(weather, rng)
    grey = float(rng.uniform(66, 104))
    paving = float(rng.uniform(104, 150))
    walls = rng.permutation(len(_WALLS))[:5]
    return Style(
        seed=seed,
        drive_side=-1 if rng.uniform() < 0.6 else 1,
        road_half_m=lanes_half + (2.1 if max(parking) > 0 else 0.0),
        walk_m=float(rng.uniform(2.6, 5.6)),
        parking=(parking[0], parking[1]),
        tree_share=float(rng.uniform(0.1, 0.75)),
        bare_trees=bare,
        fence_share=float(rng.uniform(0.3, 0.9)),
        crowd=float(rng.uniform(0.35, 1.0)),
        traffic=float(rng.uniform(0.3, 1.0)),
        block_weights=(weights[0], weights[1], weights[2], weights[3]),
        storeys=(low, low + float(rng.uniform(0.6, 3.4))),
        walls=tuple(_WALLS[k] for k in walls),
        foliage_ramp=_foliage_ramp(rng, bare),
        asphalt_rgb=(grey, grey + float(rng.uniform(-1, 3)), grey + float(rng.uniform(-2, 7))),
        paving_rgb=(paving + 3, paving, paving - float(rng.uniform(0, 12))),
        bend=Bend(
            float(rng.uniform(0, 5)), float(rng.uniform(260, 460)), float(rng.uniform(0, 6.28))
        ),
        light=light,
        lamps_on=weather == "dusk" or bool(rng.uniform() < 0.15),
        sky_top_rgb=sky_top,
        sky_low_rgb=sky_low,
        cloud_share=clouds,
        exposure=exposure,
        contrast=float(rng.uniform(1.0, 1.25)),
        warmth=float(rng.normal(0, 0.035)),
        camera_up_m=float(rng.uniform(1.3, 1.6)),
        pitch_rad=float(rng.normal(-0.018, 0.018)),
        focal_share=float(rng.uniform(0.98, 1.16)),
    )


def _weather(weather: str, rng: np.random.Generator) -> tuple[Light, Colour, Colour, float, float]:
    """Light, sky at the zenith, sky at the horizon, cloud share, exposure."""
    side = -1 if rng.uniform() < 0.5 else 1
    if weather == "sun":
        light = Light(0.75, 0.55, side, 0.5, (196, 208, 222), float(rng.uniform(260, 520)))
        return (
            light,
            (82, 128, 190),
            (190, 212, 232),
            float(rng.uniform(0.1, 0.5)),
            float(rng.uniform(0.85, 1.15)),
        )
    if weather == "overcast":
        light = Light(0.18, 0.82, side, 0.18, (190, 194, 200), float(rng.uniform(150, 350)))
        return (
            light,
            (172, 178, 186),
            (206, 209, 212),
            float(rng.uniform(0.7, 1.0)),
            float(rng.uniform(0.85, 1.25)),
        )
    if weather == "bright":
        light = Light(0.45, 0.55, side, 0.35, (225, 228, 230), float(rng.uniform(220, 420)))
        return (
            light,
            (244, 247, 250),
            (252, 252, 252),
            float(rng.uniform(0.0, 0.3)),
            float(rng.uniform(0.85, 1.25)),
        )
    light = Light(0.12, 0.56, side, 0.15, (112, 118, 130), float(rng.uniform(160, 320)))
    return (
        light,
        (112, 128, 150),
        (186, 184, 180),
        float(rng.uniform(0.4, 1.0)),
        float(rng.uniform(0.75, 1.1)),
    )


def _foliage_ramp(rng: np.random.Generator, bare: bool) -> NDArray[np.uint8]:
    """Colours from the dark inside of a crown to its lit leaves, uint8 [256, 3]."""
    lit = np.array([118, 136, 60]) + rng.normal(0, 1, 3) * (22, 16, 12)
    if rng.uniform() < 0.2:
        lit = np.array([158, 120, 56]) + rng.normal(0, 10, 3)
    dark = np.array([16, 22, 12])
    if bare:
        lit, dark = np.array([112, 98, 84]), np.array([34, 28, 24])
    share = (np.arange(256) / 255.0)[:, None] ** 1.25
    return np.asarray(np.clip(dark + (lit * 1.25 - dark) * share, 0, 255), np.uint8)
