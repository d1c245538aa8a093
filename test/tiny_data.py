# SPDX-License-Identifier: Apache-2.0
"""A labelled data set of two pictures; in a module of its own, for other processes to import."""

from __future__ import annotations

import os

import numpy as np
from conftest import smooth_picture

from sparserefine_ros.data.datasets import Sample


class TinyData:
    """Labels are random blocks, so that every class is sometimes right and often wrong."""

    class_names: tuple[str, ...] = ("road", "car", "sky")
    colours: tuple[tuple[int, int, int], ...] = ((128, 64, 128), (64, 0, 128), (128, 128, 128))

    def __init__(self, count: int = 2) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if index >= len(self):
            raise IndexError(index)
        blocks = np.random.default_rng(index).choice(
            np.array([0, 1, 2, 255], np.uint8), size=(3, 4)
        )
        labels = blocks.repeat(10, 0).repeat(11, 1)
        return Sample(f"tiny <{index}>", smooth_picture(30, 44, seed=index), labels)


class Deadly(TinyData):
    """Ends the process that reads its second picture."""

    def __getitem__(self, index: int) -> Sample:
        if index == 1:
            os._exit(3)
        return super().__getitem__(index)
