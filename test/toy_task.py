# SPDX-License-Identifier: Apache-2.0
"""A small task for the training loop; in a module of its own, for other processes to run.

`torchrun ... toy_task.py FOLDER` trains it there and leaves what each process saw and has.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.training.loop import EpochDataset, fit
from sparserefine_ros.training.recipe import Schedule

SCHEDULE = Schedule(
    epochs=5,
    batch_size=4,
    learning_rate=0.05,
    validate_every=2,
    average_decay=0.7,
    warmup_epochs=1.0,
    workers=0,
)
Weights = dict[str, Tensor]


class ToyCrops(EpochDataset):
    """Points whose features depend on epoch and index only, labelled by the larger of two."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.epoch * 1000 + index)
        return torch.randn(4, generator=generator)


class ToyTask:
    """A two-layer network; `loss_hook(step)` may interfere, `scores` replaces the accuracy.

    With `batch_norm` the loss of a batch is no mean over its points.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        count: int = 10,
        batch_norm: bool = True,
        loss_hook: Callable[[int], float] = lambda step: 1.0,
        scores: Sequence[float] = (),
    ) -> None:
        torch.manual_seed(seed)
        norm = nn.BatchNorm1d(6) if batch_norm else nn.Identity()
        self.module = nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, 2))
        self.crops = ToyCrops(count)
        self.seen: list[list[list[float]]] = []
        self.scored: list[Weights] = []
        self._hook = loss_hook
        self._scores = iter(scores)

    def collate(self, items: list[Tensor]) -> Tensor:
        return torch.stack(items)

    def loss(self, batch: Tensor) -> Tensor:
        self.seen.append(batch.tolist())
        factor = self._hook(len(self.seen))
        labels = (batch[:, 0] > batch[:, 1]).long()
        return F.cross_entropy(self.module(batch), labels) * factor

    def score(self, module: nn.Module) -> float:
        module.eval()
        self.scored.append(copy_of(module.state_dict()))
        points = torch.randn(64, 4, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            hits = module(points).argmax(1) == (points[:, 0] > points[:, 1]).long()
        return next(self._scores, hits.float().mean().item())


def copy_of(weights: Weights) -> Weights:
    return {key: value.clone() for key, value in weights.items()}


def train_one_of_several(folder: Path) -> None:
    task, rank = ToyTask(count=12, batch_norm=False), os.environ["RANK"]
    schedule = SCHEDULE.model_copy(update={"batch_size": 1, "accumulate": 2})
    score = fit(task, schedule, folder, seed=3, resume=False)
    report = {"seen": task.seen, "scored": len(task.scored), "score": score}
    (folder / f"rank{rank}.json").write_text(json.dumps(report), encoding="utf-8")
    torch.save(task.module.state_dict(), folder / f"rank{rank}.pt")


if __name__ == "__main__":
    train_one_of_several(Path(sys.argv[1]))
