# SPDX-License-Identifier: Apache-2.0
"""What stands and moves along a seeded street. Lengths in metres, times in seconds.

The street is cut into stretches of STRETCH_M; what stands in one depends on (seed, stretch) only.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Final, Literal

import numpy as np

from sparserefine_ros.data.street.buildings import Building
from sparserefine_ros.data.street.canvas import FARTHEST_M, Colour
from sparserefine_ros.data.street.cars import Car, CarShape
from sparserefine_ros.data.street.furniture import Fence, Pole
from sparserefine_ros.data.street.people import Clothes, Cyclist, Pedestrian
from sparserefine_ros.data.street.plants import Hedge, Tree
from sparserefine_ros.data.street.style import Style, pick_colour, seeded
from sparserefine_ros.data.street.textures import (
    BARE_SPRITES,
    LEAFY_SPRITES,
    FacadeLook,
    bare_sprite,
    leafy_sprite,
)
from sparserefine_ros.data.street.things import Thing

STRETCH_M: Final = 24.0
SIDE_ROAD_M: Final = 8.0
_PAINTS: Final[tuple[Colour, ...]] = (
    (190, 190, 188), (205, 206, 208), (150, 152, 154), (96, 98, 100), (44, 45, 48), (26, 27, 30),
    (34, 46, 84), (52, 78, 128), (138, 24, 26), (96, 18, 22), (40, 72, 58), (168, 158, 130),
)  # fmt: skip
_CLOTH: Final[tuple[Colour, ...]] = (
    (28, 28, 32), (44, 48, 60), (70, 72, 76), (110, 100, 86), (150, 30, 34), (36, 60, 104),
    (190, 184, 174), (60, 74, 50), (122, 66, 96), (210, 120, 40), (36, 34, 38), (84, 88, 100),
)  # fmt: skip
_FASCIAS: Final[tuple[Colour, ...]] = (
    (120, 24, 28), (24, 56, 110), (30, 76, 56), (36, 36, 40), (190, 184, 170), (170, 100, 30),
    (86, 40, 84),
)  # fmt: skip
_SIGN_FACES: Final[tuple[Colour, ...]] = (
    (228, 228, 226),
    (30, 76, 160),
    (222, 222, 218),
    (205, 40, 42),
)
_BOARD_FACES: Final[tuple[Colour, ...]] = (
    (24, 96, 62),
    (28, 74, 150),
    (226, 226, 222),
    (120, 78, 44),
)

BlockKind = Literal["terrace", "houses", "park", "side_road"]


@lru_cache(maxsize=2048)
def block_kind(style: Style, side: int, stretch: int) -> BlockKind:
    """What lines one side (-1 left, +1 right) of a stretch."""
    rng = seeded(style.seed, 2, side, stretch // 2)
    kinds: tuple[BlockKind, ...] = ("terrace", "houses", "park", "side_road")
    kind = kinds[int(rng.choice(4, p=np.array(style.block_weights) / sum(style.block_weights)))]
    if kind == "side_road" and stretch % 2:
        return "terrace"
    return kind


def standing_things(style: Style, along_m: float) -> list[Thing]:
    """Everything that stands still in view of a camera at along_m."""
    first = int(np.floor((along_m - 14.0) / STRETCH_M))
    last = int(np.floor((along_m + FARTHEST_M) / STRETCH_M))
    return [
        thing for stretch in range(first, last + 1) for thing in _stretch_things(style, stretch)
    ]


@lru_cache(maxsize=256)
def _stretch_things(style: Style, stretch: int) -> tuple[Thing, ...]:
    things: list[Thing] = []
    start = stretch * STRETCH_M
    for side in (-1, 1):
        rng = seeded(style.seed, 3, side, stretch)
        kind = block_kind(style, side, stretch)
        if kind == "park":
            things += _park(style, rng, side, start)
        elif kind == "houses":
            things += _houses(style, rng, side, start)
        else:
            gap = SIDE_ROAD_M + 2.0 if kind == "side_road" else 0.0
            things += _terrace(style, rng, side, start + gap, start + STRETCH_M)
        clear = start + SIDE_ROAD_M + 3.0 if kind == "side_road" else start
        things += _kerbside(style, rng, side, clear, start + STRETCH_M)
        things += _bystanders(style, rng, side, clear, start + STRETCH_M)
        things += _parked(style, rng, side, clear, start + STRETCH_M)
        if kind == "side_road":
            things += _junction_poles(style, rng, start)
    return tuple(things)


def _look(style: Style, rng: np.random.Generator, shop: bool) -> FacadeLook:
    white = float(rng.uniform(150, 225)) if rng.uniform() < 0.75 else float(rng.uniform(30, 70))
    glass = float(rng.uniform(28, 70))
    modern = rng.uniform() < 0.3
    return FacadeLook(
        seed=int(rng.integers(1 << 30)),
        wall_rgb=pick_colour(rng, style.walls),
        frame_rgb=(white, white, white * 0.97),
        glass_rgb=(glass, glass * 1.08, glass * 1.18),
        fascia_rgb=pick_colour(rng, _FASCIAS),
        bay_m=float(rng.uniform(1.8, 3.4)),
        floor_m=float(rng.uniform(2.7, 3.3)),
        window_width=0.86 if modern else float(rng.uniform(0.38, 0.6)),
        window_height=0.5 if modern else float(rng.uniform(0.45, 0.64)),
        brick=bool(rng.uniform() < 0.7) and not modern,
        shop=shop,
    )


def _building(
    style: Style,
    rng: np.random.Generator,
    lateral_m: float,
    near_m: float,
    far_m: float,
    shop: bool,
    end_shows: bool,
) -> Building:
    storeys = max(1, round(float(rng.uniform(*style.storeys))))
    pitched = rng.uniform() < (0.8 if storeys <= 3 else 0.25)
    roof = float(rng.uniform(46, 92))
    return Building(
        lateral_m=lateral_m,
        near_m=near_m,
        far_m=far_m,
        height_m=3.2 + 2.9 * (storeys - 1) + float(rng.uniform(0.2, 1.0)),
        depth_m=float(rng.uniform(8, 12)),
        rise_m=float(rng.uniform(2.2, 3.8)) if pitched else 0.0,
        roof_rgb=(roof * 1.08, roof, roof * 0.95),
        end_shows=end_shows,
        look=_look(style, rng, shop),
    )


def _terrace(
    style: Style, rng: np.random.Generator, side: int, near_m: float, far_m: float
) -> list[Thing]:
    things: list[Thing] = []
    count = int(rng.integers(1, 4)) if far_m - near_m > 16 else 1
    cuts = np.linspace(near_m, far_m, count + 1)
    for near, far in pairwise(cuts):
        setback = float(rng.choice([0.0, 0.0, 0.3, 1.2]))
        shop = bool(rng.uniform() < 0.45)
        things.append(
            _building(
                style,
                rng,
                side * (style.line_m + setback),
                float(near),
                float(far),
                shop,
                bool(near == near_m),
            )
        )
        if rng.uniform() < 0.15:
            hanging = side * (style.line_m - 0.7)
            things.append(
                Pole(
                    hanging,
                    float(near + far) / 2,
                    3.9,
                    0.0,
                    (0, 0, 0),
                    head="board",
                    plate_rgb=pick_colour(rng, _BOARD_FACES),
                )
            )
    return things


def _houses(style: Style, rng: np.random.Generator, side: int, start_m: float) -> list[Thing]:
    """Houses behind front gardens; fence or hedge at the sidewalk, gaps between the houses."""
    garden = float(rng.uniform(3, 7))
    things: list[Thing] = []
    for part in range(2):
        near = start_m + part * STRETCH_M / 2
        far = near + STRETCH_M / 2
        gap = float(rng.uniform(0.5, 4.5))
        things.append(
            _building(style, rng, side * (style.line_m + garden), near + gap, far, False, gap > 2)
        )
        things += _boundary(style, rng, side, near + 0.6, far - 0.6)
        if rng.uniform() < style.tree_share:
            spot = near + float(rng.uniform(2, 10))
            things.append(_tree(style, rng, side * (style.line_m + garden * 0.5), spot, 0.7))
    return things


def _park(style: Style, rng: np.random.Generator, side: int, start_m: float) -> list[Thing]:
    things: list[Thing] = []
    for row, spacing in ((2.5, 8.0), (8.0, 8.0), (15.0, 8.0)):
        for spot in np.arange(0.0, STRETCH_M, spacing):
            if rng.uniform() < 0.75:
                lateral = side * (style.line_m + row + float(rng.uniform(0, 2.5)))
                size = float(rng.uniform(0.7, 1.3))
                things.append(
                    _tree(style, rng, lateral, start_m + float(spot + rng.uniform(0, 5)), size)
                )
    things += _boundary(style, rng, side, start_m, start_m + STRETCH_M)
    return things


def _boundary(
    style: Style, rng: np.random.Generator, side: int, near_m: float, far_m: float
) -> list[Thing]:
    """Fence or hedge along the back edge of the sidewalk, in short panels that sort well."""
    lateral = side * (style.line_m + 0.15)
    fenced = rng.uniform() < style.fence_share
    tall = float(rng.uniform(0.9, 1.7))
    if not fenced and rng.uniform() < 0.3:
        return []
    boards = bool(rng.uniform() < 0.35)
    grey = float(rng.uniform(24, 60))
    colour: Colour = (
        pick_colour(rng, ((120, 96, 70), (96, 84, 70), (150, 140, 124)))
        if boards
        else (grey, grey, grey)
    )
    cuts = np.linspace(near_m, far_m, max(1, round((far_m - near_m) / 4)) + 1)
    things: list[Thing] = []
    for near, far in pairwise(cuts):
        if fenced:
            things.append(Fence(lateral, float(near), float(far), tall, colour, boards))
        else:
            things.append(Hedge(lateral, float(near), float(far), tall, style.foliage_ramp))
    return things


def _tree(
    style: Style, rng: np.random.Generator, lateral_m: float, far_m: float, size: float
) -> Tree:
    height = float(rng.uniform(6.0, 10.5)) * size
    brown = float(rng.uniform(44, 84))
    bare = style.bare_trees and rng.uniform() < 0.85
    index = int(rng.integers(BARE_SPRITES if bare else LEAFY_SPRITES))
    return Tree(
        lateral_m=lateral_m,
        far_m=far_m,
        height_m=height,
        crown_m=height * float(rng.uniform(0.55, 0.8)),
        trunk_m=height * 0.035,
        sprite=bare_sprite(index) if bare else leafy_sprite(index),
        ramp=style.foliage_ramp,
        trunk_rgb=(brown, brown * 0.9, brown * 0.78),
    )


def _kerbside(
    style: Style, rng: np.random.Generator, side: int, near_m: float, far_m: float
) -> list[Thing]:
    """Street lights, signs, street trees and guard rails."""
    things: list[Thing] = []
    kerb = side * (style.road_half_m + 0.45)
    grey = float(rng.uniform(70, 130))
    steel: Colour = (grey, grey, grey)
    if rng.uniform() < 0.6:
        height, arm = float(rng.uniform(6.5, 9)), -side * float(rng.uniform(0.9, 2.0))
        things.append(Pole(kerb, near_m + 4.0, height, 0.15, steel, arm_m=arm))
    if rng.uniform() < 0.6:
        things.append(_sign(rng, kerb, near_m + float(rng.uniform(6, 12)), grey))
    if rng.uniform() < 0.25:
        spot, height = near_m + float(rng.uniform(1, 12)), float(rng.uniform(3, 9))
        things.append(Pole(kerb, spot, height, 0.13, (92, 80, 66)))
    for spot in np.arange(near_m, far_m - 4, 10.0):
        if rng.uniform() < style.tree_share * 0.6:
            lateral = side * (style.road_half_m + 0.9)
            things.append(_tree(style, rng, lateral, float(spot + rng.uniform(0, 6)), 0.85))
    if rng.uniform() < style.fence_share * 0.45:
        lateral = side * (style.road_half_m + 0.2)
        things.extend(
            Fence(lateral, float(near), float(near + 2.5), 1.05, steel, False)
            for near in np.arange(near_m + 2, far_m - 2, 2.5)
        )
    return things


def _bystanders(
    style: Style, rng: np.random.Generator, side: int, near_m: float, far_m: float
) -> list[Thing]:
    """People who stand about, now and then with a bicycle."""
    things: list[Thing] = []
    for _ in range(int(rng.poisson(0.8 * style.crowd))):
        lateral = side * float(rng.uniform(style.road_half_m + 0.6, style.line_m - 0.4))
        spot, height = float(rng.uniform(near_m, far_m)), float(rng.uniform(1.55, 1.9))
        sideways, bag = bool(rng.uniform() < 0.4), bool(rng.uniform() < 0.3)
        things.append(Pedestrian(lateral, spot, height, _clothes(rng), 1.4, sideways, bag))
    if rng.uniform() < 0.14:
        lateral = side * float(rng.uniform(style.road_half_m + 0.9, style.line_m - 0.4))
        spot = float(rng.uniform(near_m, far_m))
        things.append(Cyclist(lateral, spot, _clothes(rng), 0.9, True, (200, 200, 60)))
    return things


def _sign(rng: np.random.Generator, lateral_m: float, along_m: float, grey: float) -> Pole:
    heads: tuple[Literal["round", "triangle", "board"], ...] = ("round", "triangle", "board")
    head = heads[int(rng.integers(3))]
    face = pick_colour(rng, _BOARD_FACES if head == "board" else _SIGN_FACES, 4)
    steel: Colour = (grey, grey, grey)
    height = float(rng.uniform(2.4, 3.3))
    return Pole(lateral_m, along_m, height, 0.08, steel, head=head, plate_rgb=face)


def _junction_poles(style: Style, rng: np.random.Generator, start_m: float) -> list[Thing]:
    lamp, edge = int(rng.integers(3)), style.road_half_m + 0.4
    kept = [sign for sign in (-1, 1) if rng.uniform() < 0.8]
    return [
        Pole(sign * edge, start_m - 1.5, 3.4, 0.13, (40, 42, 42), head="lights", lit_lamp=lamp)
        for sign in kept
    ]


def _parked(
    style: Style, rng: np.random.Generator, side: int, near_m: float, far_m: float
) -> list[Thing]:
    taken = style.parking[0 if side < 0 else 1]
    things: list[Thing] = []
    for near in np.arange(near_m + 0.5, far_m - 5.0, 6.0):
        if rng.uniform() < taken:
            lateral = side * (style.road_half_m - 1.05)
            things.append(make_car(rng, lateral, float(near), side != style.drive_side, False))
    return things


def make_car(
    rng: np.random.Generator, lateral_m: float, near_m: float, oncoming: bool, lamps_on: bool
) -> Car:
    """A random car whose rear or front, whichever is nearer, is at near_m."""
    shapes: tuple[CarShape, ...] = ("hatch", "saloon", "van", "bus")
    shape = shapes[int(rng.choice(4, p=[0.52, 0.33, 0.12, 0.03]))]
    length, width = {
        "hatch": (4.0, 1.72),
        "saloon": (4.6, 1.8),
        "van": (5.3, 2.0),
        "bus": (10.5, 2.5),
    }[shape]
    length *= float(rng.uniform(0.94, 1.06))
    return Car(
        lateral_m, near_m, length, width, shape, pick_colour(rng, _PAINTS), oncoming, lamps_on
    )


def _clothes(rng: np.random.Generator) -> Clothes:
    """Random clothes, skin and hair."""
    skin = float(rng.uniform(0.35, 1.0))
    hair = float(rng.uniform(0.2, 1.0))
    return Clothes(
        pick_colour(rng, _CLOTH),
        pick_colour(rng, _CLOTH[:4]),
        (225 * skin, 178 * skin, 150 * skin),
        (120 * hair, 92 * hair, 60 * hair),
    )


def _flow(
    style: Style, tag: int, along_m: float, drift_m: float, gap_m: float
) -> list[tuple[float, np.random.Generator]]:
    """Positions ahead, with random numbers, of an endless row that has moved by drift_m."""
    first = int(np.floor((along_m - drift_m) / gap_m))
    last = int(np.floor((along_m + FARTHEST_M - drift_m) / gap_m))
    row = []
    for slot in range(first, last + 1):
        rng = seeded(style.seed, tag, slot)
        row.append((slot * gap_m + drift_m + float(rng.uniform(0, 0.6 * gap_m)), rng))
    return row


def moving_things(style: Style, time_s: float, along_m: float, speed_mps: float) -> list[Thing]:
    """Cars, cyclists and walkers at time_s, seen from along_m."""
    things: list[Thing] = []
    lane = style.lane_m
    oncoming_m = -(0.8 * speed_mps + 1.0) * time_s
    for position, rng in _flow(style, 11, along_m, oncoming_m, 26.0):
        if rng.uniform() < style.traffic * 0.7:
            things.append(make_car(rng, -lane, position, True, style.lamps_on))
    for position, rng in _flow(style, 12, along_m, speed_mps * time_s, 30.0):
        sway = 2.5 * float(np.sin(0.4 * time_s + rng.uniform(0, 6)))
        if rng.uniform() < style.traffic * 0.7 and position + sway > along_m + 9.0:
            things.append(make_car(rng, lane, position + sway, False, style.lamps_on))
    edge = style.drive_side * (abs(lane) + 1.45)
    for position, rng in _flow(style, 13, along_m, 0.55 * speed_mps * time_s, 34.0):
        if rng.uniform() < 0.35 + 0.4 * style.crowd:
            helmet, pedals = pick_colour(rng, _PAINTS), 7.0 * time_s
            things.append(Cyclist(edge, position, _clothes(rng), pedals, False, helmet))
    return things + _walkers(style, time_s, along_m)


def _walkers(style: Style, time_s: float, along_m: float) -> list[Thing]:
    things: list[Thing] = []
    for tag, side, pace_mps in ((14, -1, 1.3), (15, -1, -1.2), (16, 1, 1.25), (17, 1, -1.35)):
        for position, rng in _flow(style, tag, along_m, pace_mps * time_s, 16.0):
            if rng.uniform() >= style.crowd * 0.75:
                continue
            lateral = side * float(rng.uniform(style.road_half_m + 0.7, style.line_m - 0.3))
            stride = 6.5 * time_s + float(rng.uniform(0, 2 * np.pi))
            height, bag = float(rng.uniform(1.5, 1.9)), bool(rng.uniform() < 0.3)
            things.append(Pedestrian(lateral, position, height, _clothes(rng), stride, False, bag))
    return things
