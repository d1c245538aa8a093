# SPDX-License-Identifier: Apache-2.0
"""Items kept in memory as far as they fit."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from sparserefine_ros.training.processes import is_main_process

T = TypeVar("T")

# For the items of one cache, in each process: a thousand pictures of a megapixel with labels.
MEMORY_LIMIT_BYTES: Final = 4 << 30

_logger = logging.getLogger(__name__)


class CachedItems(Generic[T]):
    """A sequence made by index: its first items once, those beyond the memory limit each time.

    Args:
        make: item of an index, always the same.
        count: number of items.
        label: of the progress bar.
    """

    def __init__(self, make: Callable[[int], T], count: int, *, label: str) -> None:
        self._make, self._count = make, count
        self._kept: list[T] = []
        room = MEMORY_LIMIT_BYTES
        for index in progress(count, label=label):
            item = make(index)
            room -= memory_bytes(item)
            if room < 0:
                break
            self._kept.append(item)
        if len(self._kept) < count:
            _logger.info(
                "%s: %d of %d fit into %d MiB of memory, the others are made when needed",
                label, len(self._kept), count, MEMORY_LIMIT_BYTES >> 20,
            )  # fmt: skip

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> T:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._kept[index] if index < len(self._kept) else self._make(index)

    def __iter__(self) -> Iterator[T]:
        return (self[index] for index in range(self._count))


def memory_bytes(record: Any) -> int:
    """Size of the arrays and tensors in a data class and those inside it."""
    if isinstance(record, np.ndarray | torch.Tensor):
        return int(record.nbytes)
    if dataclasses.is_dataclass(record):
        return sum(memory_bytes(getattr(record, f.name)) for f in dataclasses.fields(record))
    return 0


def progress(count: int, *, label: str) -> tqdm[int]:
    """Indices 0 .. count - 1 under a progress bar, which the main process alone shows."""
    return tqdm(range(count), desc=label, unit="picture", disable=not is_main_process())
