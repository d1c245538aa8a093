# SPDX-License-Identifier: Apache-2.0
"""Sky, backdrop, road and sidewalks of the procedural street. Lengths in metres."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.street.buildings import Building
from sparserefine_ros.data.street.canvas import FARTHEST_M, Canvas, Colour
from sparserefine_ros.data.street.cars import Car
from sparserefine_ros.data.street.layout import SIDE_ROAD_M, STRETCH_M, block_kind
from sparserefine_ros.data.street.plants import Tree
from sparserefine_ros.data.street.style import Style, seeded
from sparserefine_ros.data.street.textures import noise_tile
from sparserefine_ros.data.street.things import (
    BUILDING,
    ROAD,
    SIDEWALK,
    SKY,
    TREE,
    Thing,
)

_STEP_M = 6.0
_DETAIL_M = 50.0
_GROUND_M = 2.5 * FARTHEST_M
_PAINT: Colour = (205.0, 204.0, 198.0)
_YELLOW: Colour = (196.0, 168.0, 70.0)


def draw_sky(canvas: Canvas, style: Style, time_s: float) -> None:
    """Gradient and drifting clouds down to where the ground begins."""
    height, width = canvas.labels.shape
    rows = int(np.clip(np.ceil(_ground_begins_px(canvas)) + 1, 1, height))
    grid_h, grid_w = 96, 192
    elevation = np.linspace(1, 0, grid_h, dtype=np.float32)[:, None, None]
    gradient = (
        np.array(style.sky_low_rgb) + (np.array(style.sky_top_rgb) - style.sky_low_rgb) * elevation
    )
    tile = noise_tile(50 + style.seed % 4, 256, 4, 0.62)
    clouds = np.roll(tile, int(style.seed % 251 + time_s * 0.4), axis=1)
    stretch = (np.linspace(0, 1, grid_h) ** 0.5 * 150).astype(int)
    layer = clouds[stretch][:, :grid_w] + 2.4 * style.cloud_share - 1.4
    cover = np.clip(layer, 0, 1)[..., None] * 0.85
    underside = np.array([206.0, 208.0, 212.0]) - 26 * np.clip(layer[..., None] - 0.7, 0, 1.5)
    tone = float(np.mean(style.sky_low_rgb)) / 205
    picture = gradient * (1 - cover) + underside * tone * cover
    small = np.clip(picture, 0, 255).astype(np.uint8)
    canvas.image[:rows] = cv2.resize(small, (width, rows), interpolation=cv2.INTER_LINEAR)
    canvas.labels[:rows] = SKY


def draw_backdrop(canvas: Canvas, style: Style) -> None:
    """Far houses and trees just above the horizon, the same wherever the camera stands."""
    rng = seeded(style.seed, 21)
    horizon, focal = canvas.camera.horizon_px, canvas.camera.focal_px
    foot = _ground_begins_px(canvas)
    heading = (canvas.camera.bend.slope(canvas.camera.along_m) + canvas.camera.yaw_rad) * focal
    angle = -1.2
    while angle < 1.2:
        span, rise = float(rng.uniform(0.02, 0.07)), float(rng.uniform(0.012, 0.036))
        woody = rng.uniform() < 0.45
        left = canvas.camera.width / 2 - heading + angle * focal
        right, top = left + span * focal, horizon - rise * focal
        angle += span * float(rng.uniform(0.7, 1.0))
        wobble = 1 + 0.12 * rng.standard_normal(14)
        if right < 0 or left > canvas.camera.width:
            continue
        if woody:
            arc = np.linspace(0, np.pi, 14)
            columns = (left + right) / 2 - 0.75 * (right - left) * np.cos(arc)
            crown = np.stack([columns, horizon - rise * focal * np.sin(arc) * wobble], axis=1)
            crown[[0, -1], 1] = foot
            tone = style.foliage_ramp[150].astype(float)
            canvas.polygon(crown, canvas.lit((tone[0], tone[1], tone[2]), _far(canvas)), TREE)
        else:
            box = np.array([(left, top), (right, top), (right, foot), (left, foot)])
            wall = style.walls[int(rng.integers(len(style.walls)))]
            canvas.polygon(box, canvas.lit(wall, _far(canvas), facing=0.3), BUILDING)


def _ground_begins_px(canvas: Canvas) -> float:
    """A row below the horizon that the ground, which ends at _GROUND_M, still covers."""
    camera = canvas.camera
    return camera.horizon_px + camera.up_m * camera.focal_px / (0.8 * _GROUND_M) + 1


def _far(canvas: Canvas) -> float:
    return canvas.camera.along_m + FARTHEST_M


def draw_ground(canvas: Canvas, style: Style, things: Iterable[Thing]) -> None:
    """Verges, sidewalks, kerbs, road, markings; then grain and shadows over all of them."""
    height = canvas.labels.shape[0]
    top = int(np.clip(np.ceil(canvas.camera.horizon_px), 0, height))
    if top >= height:
        return
    along = canvas.camera.along_m
    far = along + _GROUND_M
    near = along + 0.8
    paving = canvas.lit(style.paving_rgb, along + 60, facing=0.6)
    _strip(canvas, -400, 400, near, far, paving, SIDEWALK)
    for stretch in _stretches(along):
        for side in (-1, 1):
            _draw_block_ground(canvas, style, side, stretch)
    asphalt = canvas.lit(style.asphalt_rgb, along + 12, facing=0.6)
    _strip(
        canvas,
        -style.line_m,
        style.line_m,
        near,
        far,
        canvas.lit(style.paving_rgb, along + 15, facing=0.6),
        SIDEWALK,
    )
    _strip(canvas, -style.road_half_m, style.road_half_m, near, far, asphalt, ROAD)
    for side in (-1, 1):
        _draw_kerb(canvas, style, side, far)
    for stretch in _stretches(along):
        for side in (-1, 1):
            if block_kind(style, side, stretch) == "side_road":
                _draw_side_road(canvas, style, side, stretch * STRETCH_M + 1, asphalt)
    _draw_markings(canvas, style)
    _shade(canvas, style, top, things)


def _stretches(along_m: float) -> range:
    first = int(np.floor(along_m / STRETCH_M))
    return range(int(np.floor((along_m + FARTHEST_M) / STRETCH_M)), first - 1, -1)


def _strip(
    canvas: Canvas,
    left_m: float,
    right_m: float,
    near_m: float,
    far_m: float,
    colour: Colour,
    label: int | None,
) -> None:
    """A band of the ground that follows the bend."""
    near_m = max(near_m, canvas.camera.along_m + 0.8)
    if far_m <= near_m:
        return
    count = int(np.clip((far_m - near_m) / _STEP_M, 1, 60)) + 1
    steps = near_m + (far_m - near_m) * np.linspace(0, 1, count) ** 1.5
    edge = np.zeros((count, 3))
    edge[:, 2] = steps
    outline = np.concatenate([edge, edge[::-1]])
    outline[:count, 0], outline[count:, 0] = left_m, right_m
    canvas.surface(outline, colour, label)


def _draw_block_ground(canvas: Canvas, style: Style, side: int, stretch: int) -> None:
    start = stretch * STRETCH_M
    kind = block_kind(style, side, stretch)
    left, right = sorted((side * style.line_m, side * 60.0))
    if kind in ("park", "houses"):
        tone = style.foliage_ramp[190].astype(float)
        if style.bare_trees:
            tone = np.array([104.0, 112.0, 66.0])
        grass = canvas.lit((tone[0], tone[1], tone[2]), start + 6, facing=0.5)
        _strip(canvas, left, right, start, start + STRETCH_M, grass, TREE)
    elif kind == "side_road":
        asphalt = canvas.lit(style.asphalt_rgb, start, facing=0.6)
        _strip(canvas, left, right, start + 1, start + 1 + SIDE_ROAD_M, asphalt, ROAD)


def _draw_kerb(canvas: Canvas, style: Style, side: int, far_m: float) -> None:
    """Kerb stones, gutter and edge line of one side."""
    along = canvas.camera.along_m
    rng = seeded(style.seed, 22, side)
    edge = style.road_half_m
    bands = [
        (edge + 0.08, 0.08, (168.0, 166.0, 160.0), SIDEWALK),
        (edge - 0.05, 0.05, (52.0, 52.0, 52.0), None),
    ]
    if rng.uniform() < 0.5:
        bands.append((edge - 0.35, 0.05, _YELLOW if rng.uniform() < 0.5 else _PAINT, None))
    for lateral, half, rgb, label in bands:
        colour = canvas.lit(rgb, along + 15, facing=0.6)
        _strip(canvas, side * lateral - half, side * lateral + half, along, far_m, colour, label)


def _draw_side_road(
    canvas: Canvas, style: Style, side: int, start_m: float, asphalt: Colour
) -> None:
    """Mouth of a side road: asphalt instead of sidewalk, kerb and edge line."""
    left, right = sorted((side * (style.road_half_m - 0.5), side * (style.line_m + 0.2)))
    _strip(canvas, left, right, start_m, start_m + SIDE_ROAD_M, asphalt, ROAD)


def _draw_markings(canvas: Canvas, style: Style) -> None:
    along = canvas.camera.along_m
    dash, pause = ((2.0, 4.0), (4.0, 2.0), (3.0, 6.0))[int(seeded(style.seed, 22).integers(3))]
    period = dash + pause
    for slot in range(int((along + 2 * _DETAIL_M) // period), int(along // period) - 1, -1):
        paint = canvas.lit(_PAINT, slot * period, facing=0.6)
        _strip(canvas, -0.06, 0.06, slot * period, slot * period + dash, paint, None)
    for stretch in _stretches(along):
        start = stretch * STRETCH_M
        if start < along + _DETAIL_M:
            _draw_patches(canvas, style, stretch)
        if start < along + 2 * _DETAIL_M and seeded(style.seed, 23, stretch).uniform() < 0.14:
            _draw_zebra(canvas, style, start + 14)


def _draw_zebra(canvas: Canvas, style: Style, start_m: float) -> None:
    paint = canvas.lit(_PAINT, start_m, facing=0.6)
    half = style.road_half_m - 0.3
    for left in np.arange(-half, half - 0.5, 1.0):
        _strip(canvas, float(left), float(left) + 0.5, start_m, start_m + 2.8, paint, None)


def _draw_patches(canvas: Canvas, style: Style, stretch: int) -> None:
    """Repairs and manhole covers."""
    rng = seeded(style.seed, 24, stretch)
    for _ in range(int(rng.integers(0, 4))):
        near = stretch * STRETCH_M + float(rng.uniform(0, 18))
        left = float(rng.uniform(-style.road_half_m + 0.3, style.road_half_m - 1.5))
        tone = float(rng.uniform(0.72, 1.15))
        red, green, blue = style.asphalt_rgb
        colour = canvas.lit((red * tone, green * tone, blue * tone), near, facing=0.6)
        wide, long = (
            (0.6, 0.6)
            if rng.uniform() < 0.4
            else (float(rng.uniform(0.8, 2.2)), float(rng.uniform(1, 7)))
        )
        _strip(canvas, left, left + wide, near, near + long, colour, None)


def _shade(canvas: Canvas, style: Style, top: int, things: Iterable[Thing]) -> None:
    region = canvas.image[top:]
    gain = _grain(canvas, top) * _shadows(canvas, top, things)
    scaled = np.clip(gain * 128, 0, 255).astype(np.uint8)
    cv2.multiply(region, cv2.merge([scaled] * 3), dst=region, scale=1 / 128)


def _grain(canvas: Canvas, top: int) -> NDArray[np.float32]:
    """Asphalt grain and wear as a gain around 1, float32 [H - top, W]."""
    height, width = canvas.labels.shape
    camera = canvas.camera
    rows = np.arange(top, height)
    ahead = camera.up_m * camera.focal_px / np.maximum(rows - camera.horizon_px, 0.5)
    per_px = ahead / camera.focal_px
    drift = camera.bend.offset_m(camera.along_m + ahead) - camera.bend.offset_m(camera.along_m)
    heading = camera.bend.slope(camera.along_m) + camera.yaw_rad
    left = camera.lateral_m - drift + heading * ahead - per_px * width / 2
    along = camera.along_m + ahead
    total = np.ones((height - top, width), np.float32)
    columns = np.arange(width, dtype=np.float32)
    for kind, texel_m, stretch, strength in ((61, 0.012, 1.0, 0.06), (62, 0.07, 9.0, 0.055)):
        tile = noise_tile(kind, 512, 64 if kind == 61 else 8, 0.8)
        start = np.mod(left / texel_m, 512).astype(np.float32)
        map_x = start[:, None] + (per_px / texel_m).astype(np.float32)[:, None] * columns
        row_y = np.mod(along / (texel_m * stretch), 512).astype(np.float32)
        map_y = np.repeat(row_y[:, None], width, axis=1)
        fade = strength * np.clip(1.5 * texel_m / per_px, 0, 1).astype(np.float32)[:, None]
        sampled = cv2.remap(tile, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        total += fade * sampled
    return total


def _shadows(canvas: Canvas, top: int, things: Iterable[Thing]) -> NDArray[np.float32]:
    """Light left on the ground, float32 [H - top, W], drawn small and blurred."""
    height, width = canvas.labels.shape
    shrink = 4 if width >= 960 else 2
    small = np.full((-(-(height - top) // shrink), -(-width // shrink)), 255, np.uint8)
    light = canvas.light
    for thing in things:
        if thing.far_m > canvas.camera.along_m + 1.6 * _DETAIL_M:
            continue
        if isinstance(thing, Car):
            points = _rectangle(
                thing.lateral_m, thing.width_m / 2 + 0.12, thing.near_m - 0.15, thing.far_m + 0.15
            )
            _darken(canvas, small, points, top, shrink, 0.32)
        elif isinstance(thing, Tree) and light.shadow > 0.3:
            reach = -light.sun_side * thing.height_m * 0.6
            angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
            points = np.zeros((14, 3))
            points[:, 0] = thing.lateral_m + reach + thing.crown_m * 0.75 * np.cos(angles)
            points[:, 2] = thing.far_m + thing.crown_m * 0.5 * np.sin(angles)
            _darken(canvas, small, points, top, shrink, 1 - light.shadow)
        elif (
            isinstance(thing, Building)
            and light.shadow > 0.3
            and thing.lateral_m * light.sun_side > 0
        ):
            reach = thing.lateral_m - light.sun_side * thing.height_m * 0.65
            centre, half = (thing.lateral_m + reach) / 2, abs(thing.lateral_m - reach) / 2
            points = _rectangle(centre, half, thing.near_m, thing.far_m)
            _darken(canvas, small, points, top, shrink, 1 - light.shadow)
    soft = cv2.GaussianBlur(small, (0, 0), max(0.8, width / shrink / 320))
    full = cv2.resize(
        soft, (small.shape[1] * shrink, small.shape[0] * shrink), interpolation=cv2.INTER_LINEAR
    )
    return np.asarray(full[: height - top, :width].astype(np.float32) / 255)


def _rectangle(centre_m: float, half_m: float, near_m: float, far_m: float) -> NDArray[np.float64]:
    left, right = centre_m - half_m, centre_m + half_m
    return np.array([(left, 0, near_m), (right, 0, near_m), (right, 0, far_m), (left, 0, far_m)])


def _darken(
    canvas: Canvas,
    small: NDArray[np.uint8],
    points: NDArray[np.float64],
    top: int,
    shrink: int,
    left_over: float,
) -> None:
    if points[:, 2].max() < canvas.camera.along_m + 1:
        return
    pixels = (canvas.camera.project(points) - (0, top)) / shrink
    mask = np.rint(np.clip(pixels, -(2**20), 2**20) * 16).astype(np.int32)
    cv2.fillPoly(small, [mask], (int(255 * left_over),), cv2.LINE_8, 4)
