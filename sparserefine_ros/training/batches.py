# SPDX-License-Identifier: Apache-2.0
"""The crops of an epoch, in batches, prepared by other processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from sparserefine_ros.errors import SparseRefineError
from sparserefine_ros.training.recipe import Schedule


class EpochDataset(Dataset[Any]):
    """A data set whose items depend on the epoch only through `set_epoch`."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose crops come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        raise NotImplementedError


def make_batches(
    crops: EpochDataset,
    collate: Callable[[list[Any]], Any],
    schedule: Schedule,
    generator: torch.Generator,
) -> DataLoader[Any]:
    """Batches of an epoch, in an order that the generator gives."""
    return DataLoader(
        crops,
        batch_size=schedule.batch_size,
        shuffle=True,
        generator=generator,
        num_workers=schedule.workers,
        collate_fn=collate,
    )


def in_groups(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Join up to `size` batches.

    Raises:
        SparseRefineError: what an item raises, as if it were read here; or a process that prepares
            them has died.
    """
    iterator = iter(batches)
    try:
        while group := list(itertools.islice(iterator, size)):
            yield group
    except SparseRefineError as err:
        # A process puts its traceback in front of what the error said.
        raise type(err)(str(err).rpartition(f"{type(err).__name__}: ")[2].strip()) from err
    except RuntimeError as err:
        # What an item raises names the process too, further on.
        if not str(err).startswith("DataLoader worker"):
            raise
        raise SparseRefineError(
            "expected the processes that prepare the crops to live, one was killed, perhaps for "
            f"want of memory; lower workers or batch_size, then resume ({err})"
        ) from err
