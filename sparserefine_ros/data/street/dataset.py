# SPDX-License-Identifier: Apache-2.0
"""Procedural street scenes as a data set."""

from __future__ import annotations

from typing import Final

import numpy as np

from sparserefine_ros.data.sample import Colour, Sample, Split
from sparserefine_ros.data.street.scene import (
    CLASS_COLOURS,
    CLASS_NAMES,
    LARGEST_PX,
    SMALLEST_PX,
    StreetScene,
)
from sparserefine_ros.errors import DatasetError

STREET_FORM: Final = "street[:SEED[:COUNT[:WIDTHxHEIGHT]]]"


class Street:
    """Procedural street scenes; training and validation never share a seed.

    Args:
        seed: first scene.
        count: number of pictures, each of a scene of its own.
        size: (height, width).

    Raises:
        DatasetError: a number is out of range.
    """

    class_names: tuple[str, ...] = CLASS_NAMES
    colours: tuple[Colour, ...] = CLASS_COLOURS

    def __init__(
        self, split: Split, *, seed: int = 0, count: int = 100, size: tuple[int, int] = (360, 480)
    ) -> None:
        if seed < 0 or count < 1 or min(size) < SMALLEST_PX or max(size) > LARGEST_PX:
            raise DatasetError(
                "expected a street with a seed of 0 or more, at least one picture and sides of "
                f"{SMALLEST_PX} .. {LARGEST_PX} pixels, got seed {seed}, count {count}, "
                f"{size[1]}x{size[0]}"
            )
        # Training streets have seeds from 0 upwards, validation streets from -1 downwards.
        self._first, self._step = (seed, 1) if split == "train" else (-1 - seed, -1)
        self._count = count
        self._size = size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(index)
        seed = self._first + self._step * index
        time_s = float(np.random.default_rng(abs(seed)).uniform(0.0, 60.0))
        frame = StreetScene(seed).render(time_s, height=self._size[0], width=self._size[1])
        return Sample(f"street_{seed}", frame.image, frame.labels)


def street_from_text(rest: str, split: Split) -> Street:
    """Open the streets that the part of `STREET_FORM` after `street:` describes.

    Raises:
        DatasetError: it has another form, or a number is out of range.
    """
    defaults = ["0", "100", "480x360"]
    fields = rest.split(":") if rest else []
    try:
        seed, count, size = fields + defaults[len(fields) :]
        width, height = (int(side) for side in size.split("x"))
        return Street(split, seed=int(seed), count=int(count), size=(height, width))
    except ValueError as err:
        raise DatasetError(
            f"expected {STREET_FORM} with whole numbers, got {f'street:{rest}'!r}"
        ) from err
