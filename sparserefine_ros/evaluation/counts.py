# SPDX-License-Identifier: Apache-2.0
"""Metrics as integer counts: they add up over frames, processes and machines, exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self


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


def ratio(part: int | np.int64, whole: int | np.int64) -> float:
    """Share 0 .. 1 of a whole; NaN when there is nothing to share."""
    return float(part / whole) if whole else float("nan")
