# SPDX-License-Identifier: Apache-2.0
"""Another dense model, usually one trained at full resolution, that a refiner imitates.

Shape legend: H, W full resolution; N selected pixels; C classes.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.stage import open_dense_stage
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.records import Selection
from sparserefine_ros.selection import nearest_index
from sparserefine_ros.training.processes import threads_per_process


def open_named_bundle(name: str) -> Bundle:
    """The bundle that a recipe names: by path, which may hold variables, or by shipped name."""
    return Bundle.named(os.path.expandvars(name))


class Teacher:
    """Probabilities of the dense model of a bundle at selected pixels.

    Args:
        name: of the bundle, as in a recipe.
        student: bundle of the dense model that is refined.

    Attributes:
        digest: of the teacher's bundle.

    Raises:
        ConfigurationError: its classes are others.
    """

    def __init__(self, name: str, student: Bundle) -> None:
        bundle = open_named_bundle(name)
        if bundle.class_names != student.class_names:
            raise ConfigurationError(
                f"expected a teacher with the bundle's classes {list(student.class_names)}, "
                f"got {list(bundle.class_names)}; train it on the same data"
            )
        self.digest = bundle.digest
        self._look = open_dense_stage(bundle, threads=threads_per_process())

    def __call__(self, image: NDArray[np.uint8], selection: Selection) -> Tensor:
        """Picture uint8 [H, W, 3] RGB -> float32 [C, N]."""
        logits, pixels = self._look(image).dense.logits, selection.pixels
        (height, width), size = selection.full_size, logits.shape[1:]
        rows = nearest_index(height, size[0])[pixels // width]
        columns = nearest_index(width, size[1])[pixels % width]
        return logits.flatten(1).index_select(1, rows * size[1] + columns).softmax(0)
