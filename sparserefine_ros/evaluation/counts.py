# SPDX-License-Identifier: Apache-2.0
"""Metrics as integer counts: they add up over frames, processes and machines, exactly."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Self

from sparserefine_ros.data.datasets import IGNORED_LABEL

OUTCOMES: Final = 3
UNLABELLED: Final = 0
RIGHT: Final = 1
WRONG: Final = 2


class Counts:
    """What a metric counted so far; its scores are computed from this alone.

    Attributes:
        counts: int64, of a shape that each metric describes.
    """

    def __init__(self, *shape: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros(shape, np.int64)

    def merge(self, other: Self) -> None:
        """Add what another one of the same kind counted.

        Raises:
            ValueError: it counted something else.
        """
        if type(other) is not type(self) or other.counts.shape != self.counts.shape:
            raise ValueError(
                f"expected {type(self).__name__} counts {list(self.counts.shape)}, "
                f"got {type(other).__name__} {list(other.counts.shape)}"
            )
        self.counts += other.counts


def count_pairs(
    first: NDArray[np.uint8], second: NDArray[np.uint8], seconds: int
) -> NDArray[np.int64]:
    """How often each value of one map meets each of another.

    Args:
        first: uint8, of any shape.
        second: uint8, of the same shape, below `seconds`.
        seconds: 1 .. 256.

    Returns:
        int64 [256, seconds].
    """
    codes = first.astype(np.int32)  # both in one number: one pass over the picture
    codes *= seconds
    codes += second
    return count_values(codes, 256 * seconds).reshape(256, seconds)


def count_values(numbers: NDArray[np.integer[Any]], values: int) -> NDArray[np.int64]:
    """How often each number occurs, int64 [values].

    PyTorch takes half the time of NumPy, and other threads may run Python meanwhile.

    Args:
        numbers: of a signed type, writable, of any shape, 0 .. values - 1.
        values: one above the largest number there may be.
    """
    counts: NDArray[np.int64] = torch.bincount(
        torch.from_numpy(numbers.reshape(-1)), minlength=values
    ).numpy()
    return counts


def outcomes(truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """UNLABELLED, RIGHT or WRONG for each pixel, from class ids, 255 ignored in the truth."""
    labelled = truth != IGNORED_LABEL
    wrong = labelled & (predicted != truth)
    outcome: NDArray[np.uint8] = np.add(labelled, wrong, dtype=np.uint8)
    return outcome


def ratio(part: int | np.int64, whole: int | np.int64) -> float:
    """Share 0 .. 1 of a whole; NaN when there is nothing to share."""
    return float(part / whole) if whole else float("nan")
