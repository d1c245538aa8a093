# SPDX-License-Identifier: Apache-2.0
"""Textures of the procedural street: noise tiles, facades, foliage. Colours are RGB 0..255.

Shapes: h, w texture rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]
LEAFY_SPRITES = 6
BARE_SPRITES = 3
_SPRITE_PX = 384
_GROUND_FLOOR_M = 3.2
_REFLECTIONS = np.array([0.55, 0.8, 1.0, 1.25, 1.9], np.float32)


@lru_cache(maxsize=16)
def noise_tile(kind: int, size: int, coarsest: int, roughness: float) -> Floats32:
    """Seamless noise, float32 [size, size], mean 0 and deviation 1.

    Args:
        kind: seed of the tile.
        size: side in pixels.
        coarsest: cells per side of the coarsest octave.
        roughness: gain from one octave to the next, 0..1.
    """
    rng = np.random.default_rng((17, kind))
    total = np.zeros((size, size), np.float32)
    cells, gain = coarsest, 1.0
    while cells <= size:
        octave = rng.standard_normal((cells, cells), np.float32)
        wrapped = np.pad(octave, 2, mode="wrap")
        zoom = size / cells
        grown = cv2.resize(wrapped, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        margin = round(2 * zoom)
        total += gain * grown[margin : margin + size, margin : margin + size]
        cells, gain = cells * 2, gain * roughness
    return np.asarray((total - total.mean()) / total.std(), np.float32)


@lru_cache(maxsize=2)
def sensor_noise(size: int = 512) -> NDArray[np.int8]:
    """Photon-like noise, int8 [size, size, 3], deviation 16; grey and coloured grain mixed."""
    rng = np.random.default_rng(5)
    grey = rng.standard_normal((size, size, 1), np.float32)
    coloured = rng.standard_normal((size, size, 3), np.float32)
    coloured = cv2.GaussianBlur(coloured, (3, 3), 0.6) * 1.6
    return np.asarray(np.clip(16 * (0.75 * grey + 0.66 * coloured), -127, 127), np.int8)


@dataclass(frozen=True)
class Sprite:
    """A tree's crown at several sizes.

    Attributes:
        levels: uint8 [h, w, 3] each, largest first; channels are cover (127 is the outline),
            shade (0 dark, 255 lit) and region (labelled where above 127).
    """

    levels: tuple[NDArray[np.uint8], ...]

    def level(self, width_px: float) -> NDArray[np.uint8]:
        """The smallest level that is not coarser than the width asked for."""
        for plane in reversed(self.levels):
            if plane.shape[1] >= width_px:
                return plane
        return self.levels[0]


@cache
def leafy_sprite(index: int) -> Sprite:
    """Crown in full leaf, index 0..LEAFY_SPRITES-1."""
    rng = np.random.default_rng((23, index))
    size = _SPRITE_PX
    grid = (np.mgrid[0:size, 0:size].astype(np.float32) + 0.5) / size
    rows, columns = grid[0], grid[1]
    body = np.full((size, size), -1.0, np.float32)
    glow = np.zeros((size, size), np.float32)
    for _ in range(16):
        angle, reach = rng.uniform(0, 2 * np.pi), 0.27 * np.sqrt(rng.uniform())
        centre = (0.5 + reach * np.sin(angle), 0.5 + reach * np.cos(angle))
        radius = rng.uniform(0.12, 0.22)
        down, across = (rows - centre[0]) / radius, (columns - centre[1]) / radius
        lobe = 1 - np.sqrt(down**2 + across**2)
        glow = np.where(lobe > np.maximum(body, 0), 0.5 - 0.45 * down + 0.12 * across, glow)
        body = np.maximum(body, lobe)
    leaves = noise_tile(30 + index % 3, 512, 24, 0.85)[:size, :size]
    cover = np.minimum(body, 0.6) * 260 + 34 * leaves + 150
    shade = 118 + 92 * (cv2.GaussianBlur(glow, (0, 0), 7) - 0.5) + 36 * leaves - 60 * (rows - 0.45)
    edge = np.minimum.reduce([rows, columns, 1 - rows, 1 - columns])
    cover = np.where(edge < 0.015, 0, cover)
    return _pyramid(cover, shade, cover)


@cache
def bare_sprite(index: int) -> Sprite:
    """Crown without leaves, index 0..BARE_SPRITES-1; the labels get the hull of its twigs."""
    rng = np.random.default_rng((29, index))
    size = _SPRITE_PX
    twigs = np.zeros((size, size), np.uint8)
    tips = [(size / 2, size - 1.0, -np.pi / 2, size * 0.21, 7.0)]
    while tips:
        column, row, angle, length, width = tips.pop()
        end = (column + length * np.cos(angle), row + length * np.sin(angle))
        start_px, end_px = (
            (round(column * 16), round(row * 16)),
            (round(end[0] * 16), round(end[1] * 16)),
        )
        cv2.line(twigs, start_px, end_px, (255,), max(1, round(width)), cv2.LINE_AA, 4)
        if length < size * 0.022:
            continue
        for _ in range(3 if length < size * 0.16 else 4):
            turn = rng.normal(0, 0.5)
            tips.append((*end, angle + turn, length * rng.uniform(0.62, 0.82), width * 0.62))
    hull = cv2.GaussianBlur((twigs > 60).astype(np.float32), (0, 0), 5)
    region = np.clip(hull * 255 / 0.30, 0, 255)
    shade = 90 + 30 * noise_tile(33, 512, 24, 0.8)[:size, :size]
    return _pyramid(twigs.astype(np.float32), shade, np.maximum(region, twigs))


def _pyramid(cover: Floats32, shade: Floats32, region: Floats32) -> Sprite:
    plane = np.clip(np.stack([cover, shade, region], axis=2), 0, 255).astype(np.uint8)
    levels = [plane]
    while levels[-1].shape[0] > 12:
        half = levels[-1].shape[0] // 2
        levels.append(
            cv2.resize(levels[-1], (half, half), interpolation=cv2.INTER_AREA).astype(np.uint8)
        )
    return Sprite(tuple(levels))


@dataclass(frozen=True)
class FacadeLook:
    """What one building's walls look like; colours RGB 0..255, lengths in metres, shares 0..1."""

    seed: int
    wall_rgb: tuple[float, float, float]
    frame_rgb: tuple[float, float, float]
    glass_rgb: tuple[float, float, float]
    fascia_rgb: tuple[float, float, float]
    bay_m: float
    floor_m: float
    window_width: float
    window_height: float
    brick: bool
    shop: bool

    def bays(self, length_m: float) -> int:
        """Windows side by side in a wall of that length."""
        return max(1, round(length_m / self.bay_m))


@lru_cache(maxsize=96)
def facade_texture(
    look: FacadeLook,
    *,
    length_m: float,
    height_m: float,
    skip_bays: int,
    columns_px: float,
    rows_px: float,
) -> NDArray[np.uint8]:
    """Wall with windows, uint8 [h, w, 3], h and w close to rows_px and columns_px.

    The first `skip_bays` bays are left out; the others look the same as with them.
    """
    rng = np.random.default_rng((41, look.seed))
    bays = look.bays(length_m)
    floors = max(1, round((height_m - _GROUND_FLOOR_M) / look.floor_m))
    reflections = _REFLECTIONS[rng.integers(len(_REFLECTIONS), size=(floors + 1, bays))][
        :, skip_bays:
    ]
    shown = bays - skip_bays
    cell_w = max(1, round(columns_px / shown))
    ground_h = max(1, round(rows_px * min(_GROUND_FLOOR_M / height_m, 0.6)))
    cell_h = max(1, round((rows_px - ground_h) / floors))
    upper = _storeys(_window_cell(look, cell_h, cell_w), reflections[:-1])
    ground_cell = (
        _shop_cell(look, ground_h, cell_w) if look.shop else _door_cell(look, ground_h, cell_w)
    )
    wall = np.concatenate([upper, _storeys(ground_cell, reflections[-1:])])
    rows, columns = wall.shape[:2]
    stains = noise_tile(2, 128, 4, 0.7)
    grain = cv2.resize(stains, (columns, rows), interpolation=cv2.INTER_LINEAR)
    gain = 1 + 0.05 * grain
    gain *= np.linspace(1.05, 0.9, rows, dtype=np.float32)[:, None]
    gain[: max(1, rows // 40)] *= 0.72
    if look.brick and rows_px / height_m > 18:
        length_shown = length_m * shown / bays
        gain *= _brick_courses(rows, columns, height_m, length_shown)
    return np.asarray(cv2.multiply(wall, cv2.merge([gain] * 3), dtype=cv2.CV_8U), np.uint8)


def _storeys(cell: tuple[Floats32, Floats32], reflections: Floats32) -> Floats32:
    """Repeat a cell (colours [h, w, 3], glass share [h, w]) once per reflection [floors, bays]."""
    colours, glass = cell
    floors, bays = reflections.shape
    rows, columns = glass.shape
    gains = 1 + glass[None, :, None, :] * (reflections[:, None, :, None] - 1)
    wall = colours[None, :, None] * gains[..., None]
    return np.asarray(wall.reshape(floors * rows, bays * columns, 3), np.float32)


def _blank_cell(look: FacadeLook, rows: int, columns: int) -> tuple[Floats32, Floats32]:
    colours = np.empty((rows, columns, 3), np.float32)
    colours[:] = look.wall_rgb
    return colours, np.zeros((rows, columns), np.float32)


def _box(
    rows: int, columns: int, left: float, top: float, right: float, bottom: float
) -> tuple[slice, slice]:
    """Slices of a box given in shares of a cell, at least one pixel each way."""
    first_row, first_column = int(top * rows), int(left * columns)
    last_row = max(first_row + 1, round(bottom * rows))
    last_column = max(first_column + 1, round(right * columns))
    return slice(first_row, last_row), slice(first_column, last_column)


def _window_cell(look: FacadeLook, rows: int, columns: int) -> tuple[Floats32, Floats32]:
    colours, glass = _blank_cell(look, rows, columns)
    left, right = 0.5 - look.window_width / 2, 0.5 + look.window_width / 2
    top, bottom = 0.5 - look.window_height / 2, 0.5 + look.window_height / 2
    colours[_box(rows, columns, left - 0.03, bottom, right + 0.03, bottom + 0.05)] *= 1.25
    colours[_box(rows, columns, left - 0.02, top - 0.07, right + 0.02, top)] *= 0.85
    colours[_box(rows, columns, left, top, right, bottom)] = look.frame_rgb
    rim_x, rim_y = 0.03 if columns > 16 else 0.0, 0.03 if rows > 16 else 0.0
    middle = (left + right) / 2
    for first, last in ((left + rim_x, middle - rim_x / 2), (middle + rim_x / 2, right - rim_x)):
        pane = _box(rows, columns, first, top + rim_y, last, bottom - rim_y)
        height = pane[0].stop - pane[0].start
        sheen = np.linspace(1.35, 0.65, height, dtype=np.float32)[:, None, None]
        region = colours[pane]
        region[:] = np.asarray(look.glass_rgb, np.float32) * sheen[: region.shape[0]]
        glass[pane] = 1
    return colours, glass


def _shop_cell(look: FacadeLook, rows: int, columns: int) -> tuple[Floats32, Floats32]:
    colours, glass = _blank_cell(look, rows, columns)
    colours[_box(rows, columns, 0, 0.08, 1, 0.27)] = look.fascia_rgb
    letters = _box(rows, columns, 0.22, 0.13, 0.78, 0.22)
    colours[letters][:, ::2] = (225, 220, 205)
    colours[_box(rows, columns, 0.04, 0.27, 0.96, 1.0)] = np.multiply(look.fascia_rgb, 0.6)
    pane = _box(rows, columns, 0.07, 0.31, 0.93, 0.86)
    region = colours[pane]
    region[:] = np.asarray(look.glass_rgb, np.float32) * 0.8
    region[region.shape[0] // 2 :] += 22
    glass[pane] = 1
    return colours, glass


def _door_cell(look: FacadeLook, rows: int, columns: int) -> tuple[Floats32, Floats32]:
    colours, glass = _blank_cell(look, rows, columns)
    colours[_box(rows, columns, 0.05, 0.28, 0.33, 1.0)] = look.frame_rgb
    colours[_box(rows, columns, 0.08, 0.33, 0.30, 1.0)] = look.fascia_rgb
    colours[_box(rows, columns, 0.44, 0.22, 0.94, 0.74)] = look.frame_rgb
    for left, right in ((0.47, 0.68), (0.70, 0.91)):
        pane = _box(rows, columns, left, 0.26, right, 0.70)
        colours[pane] = look.glass_rgb
        glass[pane] = 1
    return colours, glass


@lru_cache(maxsize=1)
def _brick_tile() -> Floats32:
    """Gains around 1 for 128 courses of 64 bricks, three rows and six columns to a brick."""
    rng = np.random.default_rng(43)
    tones = np.repeat(1 + 0.07 * rng.standard_normal((128, 64), np.float32), 6, axis=1)
    tones[1::2] = np.roll(tones[1::2], 3, axis=1)
    tile = np.repeat(tones, 3, axis=0)
    tile[::3] = 0.5 * tile[::3] + 0.55
    return np.asarray(tile, np.float32)


def _brick_courses(rows: int, columns: int, height_m: float, length_m: float) -> Floats32:
    tile = _brick_tile()
    courses = min(tile.shape[0], round(height_m / 0.15) * 3)
    bricks = min(tile.shape[1], round(length_m / 0.45) * 6)
    part = tile[:courses, :bricks]
    return np.asarray(cv2.resize(part, (columns, rows), interpolation=cv2.INTER_LINEAR), np.float32)


def foliage_texture(
    ramp: NDArray[np.uint8], columns_px: float, rows_px: float
) -> NDArray[np.uint8]:
    """Leaves for hedges, uint8 [h, w, 3], coloured by a ramp [256, 3]."""
    rows, columns = max(1, min(256, round(rows_px))), max(1, min(512, round(columns_px)))
    leaves = noise_tile(31, 512, 24, 0.85)[:rows, :columns]
    shade = 110 + 38 * leaves + np.linspace(50, -60, rows, dtype=np.float32)[:, None]
    return np.asarray(ramp[np.clip(shade, 0, 255).astype(np.uint8)])
