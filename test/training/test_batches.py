# SPDX-License-Identifier: Apache-2.0
"""What goes wrong while other processes prepare crops."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from torch import Tensor
from toy_task import SCHEDULE, ToyCrops, ToyTask

from sparserefine_ros.errors import DatasetError, SparseRefineError
from sparserefine_ros.training.loop import fit


@pytest.mark.parametrize("workers", [0, 1])
def test_an_item_that_cannot_be_read_is_told_without_a_traceback(
    workers: int, tmp_path: Path
) -> None:
    class Unreadable(ToyCrops):
        def __getitem__(self, index: int) -> Tensor:
            raise DatasetError("3.png: expected labels of 0 .. 4, got 9")

    task = ToyTask()
    task.crops = Unreadable(10)
    schedule = SCHEDULE.model_copy(update={"workers": workers})
    with pytest.raises(DatasetError) as told:
        fit(task, schedule, tmp_path, seed=3, resume=False)
    assert str(told.value) == "3.png: expected labels of 0 .. 4, got 9"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_the_code_stays_one(workers: int, tmp_path: Path) -> None:
    class Mistaken(ToyCrops):
        def __getitem__(self, index: int) -> Tensor:
            raise RuntimeError("the size of tensor a must match")

    task = ToyTask()
    task.crops = Mistaken(10)
    schedule = SCHEDULE.model_copy(update={"workers": workers})
    with pytest.raises(RuntimeError, match="the size of tensor a must match"):
        fit(task, schedule, tmp_path, seed=3, resume=False)


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    class Deadly(ToyCrops):
        def __getitem__(self, index: int) -> Tensor:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    task = ToyTask()
    task.crops = Deadly(10)
    schedule = SCHEDULE.model_copy(update={"workers": 1})
    with pytest.raises(SparseRefineError, match="lower workers or batch_size, then resume"):
        fit(task, schedule, tmp_path, seed=3, resume=False)
