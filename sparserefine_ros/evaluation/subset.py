# SPDX-License-Identifier: Apache-2.0
"""Which frames of a data set are evaluated: the first so many, or one part of several."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sparserefine_ros.errors import ConfigurationError


@dataclass(frozen=True)
class Subset:
    """Frames of a data set.

    Attributes:
        limit: the first frames only; 0 for all.
        shard: which part of them, 1 .. shards.
        shards: number of parts; each takes every so many-th frame.

    Raises:
        ConfigurationError: a negative limit.
    """

    limit: int = 0
    shard: int = 1
    shards: int = 1

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ConfigurationError(
                f"expected a limit of 0 (all) or more frames, got {self.limit}"
            )

    def __str__(self) -> str:
        """I/N."""
        return f"{self.shard}/{self.shards}"

    def total(self, available: int) -> int:
        """Number of frames of all parts together."""
        return min(self.limit, available) if self.limit else available

    def indices(self, available: int) -> range:
        """Places of this part's frames in a data set of so many frames.

        Raises:
            ConfigurationError: no frame is left.
        """
        indices = range(self.shard - 1, self.total(available), self.shards)
        if not indices:
            raise ConfigurationError(
                f"expected at least one frame in part {self.shard}/{self.shards} of "
                f"{self.total(available)} frames; give data with frames, or make fewer parts"
            )
        return indices


ALL_FRAMES: Final = Subset()


def parse_shard(text: str) -> tuple[int, int]:
    """Read I/N as (part, number of parts).

    Raises:
        ConfigurationError: not of that form, or not 1 <= I <= N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    shard, shards = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= shard <= shards:
        raise ConfigurationError(f"expected a part I/N with I of 1 .. N, such as 2/4, got {text!r}")
    return shard, shards
