# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_task import SCHEDULE, ToyTask, Weights, copy_of

from sparserefine_ros.training.checkpoint import LAST
from sparserefine_ros.training.loop import fit


def test_a_short_training_leaves_the_random_weights(tmp_path: Path) -> None:
    """Fifteen steps, of which the average would otherwise keep 97 percent of the first."""
    task = ToyTask(batch_norm=False)
    schedule = SCHEDULE.model_copy(update={"average_decay": 0.998})
    begin = copy_of(task.module.state_dict())["3.weight"]
    fit(task, schedule, tmp_path, seed=3, resume=False)
    end = torch.load(tmp_path / LAST, weights_only=True)["module"]["3.weight"]
    way = (task.scored[-1]["3.weight"] - begin).norm() / (end - begin).norm()
    assert 0.5 < way < 1.0


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_moving_average_of_the_weights(tmp_path: Path, decay: float) -> None:
    history: list[Weights] = []
    task = ToyTask()

    def remember(step: int) -> float:
        if step > 1:
            history.append(copy_of(task.module.state_dict()))
        return 1.0

    task._hook = remember
    schedule = SCHEDULE.model_copy(update={"epochs": 1, "average_decay": decay})
    fit(task, schedule, tmp_path, seed=3, resume=False)
    history.append(torch.load(tmp_path / LAST, weights_only=True)["module"])
    # The state a hook sees holds the previous step's weights; its batch norm ran since.
    expected = history[0]["3.weight"]
    for count, weights in enumerate(history[1:], 1):
        share = min(decay, (1 + count) / (10 + count))
        expected = share * expected + (1 - share) * weights["3.weight"]
    torch.testing.assert_close(task.scored[-1]["3.weight"], expected)
