# SPDX-License-Identifier: Apache-2.0
"""The training loop shared by dense networks and refiners.

A `Task` says what a batch, a loss and a score are; `fit` does the rest: AdamW, cosine schedule,
averaged weights, progress bar, CSV log, best and last checkpoint, resume.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sparserefine_ros.errors import ConfigurationError, SparseRefineError
from sparserefine_ros.training.recipe import Schedule

LAST, BEST, LOG = "last.pt", "best.pt", "log.csv"


class Task(Protocol):
    """What is trained."""

    @property
    def module(self) -> nn.Module:
        """The trained network."""

    @property
    def crops(self) -> EpochDataset:
        """One epoch of training crops."""

    def collate(self, items: list[Any]) -> Any:
        """Join the items of `crops` into a batch."""

    def loss(self, batch: Any) -> Tensor:
        """Scalar loss of a batch."""

    def score(self, module: nn.Module) -> float:
        """How good `module` is on the validation data, 0 .. 1; such as mean IoU."""


class EpochDataset(Dataset[Any]):
    """A data set whose items depend on the epoch only through `set_epoch`."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose crops come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        raise NotImplementedError


def fit(task: Task, schedule: Schedule, folder: Path, *, seed: int, resume: bool) -> float:
    """Train `task.module`, leave the best weights in it and return their score.

    Args:
        task: what is trained.
        schedule: optimisation.
        folder: checkpoints `last.pt`, `best.pt` and `log.csv` go here.
        seed: order of the crops.
        resume: go on from `last.pt` where there is one.

    Raises:
        ConfigurationError: `folder` already holds a run and `resume` is false.
        SparseRefineError: the loss became NaN or infinite, or no validation pixel is labelled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / LAST).exists() and not resume:
        raise ConfigurationError(
            f"{folder} already holds a run; pass --resume or choose another folder"
        )
    run = _Run(task, schedule)
    first = run.restore(folder / LAST) if resume else 0
    for epoch in range(first, schedule.epochs):
        task.crops.set_epoch(epoch)
        loss = run.train_epoch(_batches(task, schedule, seed, epoch), epoch)
        last = epoch + 1 == schedule.epochs
        score = math.nan
        if last or (epoch + 1) % schedule.validate_every == 0:
            score = task.score(run.average.module)
            if math.isnan(score):
                raise SparseRefineError(
                    "expected validation data with labelled pixels, found none; "
                    "correct validate_on or its label files"
                )
            if score >= run.best:
                run.best = score
                save_checkpoint(folder / BEST, {"module": run.average.module.state_dict()})
        run.save(folder / LAST, epoch + 1)
        _log(folder / LOG, epoch + 1, loss, score)
    best = torch.load(folder / BEST, weights_only=True)
    task.module.load_state_dict(best["module"])
    return run.best


class _Run:
    """State of one training: optimiser, averaged weights, best score."""

    def __init__(self, task: Task, schedule: Schedule) -> None:
        self.task, self.schedule = task, schedule
        self.steps = math.ceil(len(task.crops) / schedule.batch_size)
        self.optimiser = torch.optim.AdamW(
            task.module.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self.average = AveragedModel(
            task.module,
            multi_avg_fn=get_ema_multi_avg_fn(schedule.average_decay),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )
        self.best = -math.inf

    def train_epoch(self, batches: Iterator[Any], epoch: int) -> float:
        """Return the mean loss."""
        module, schedule = self.task.module, self.schedule
        module.train()
        total, bar = (
            0.0,
            tqdm(batches, total=self.steps, desc=f"epoch {epoch + 1}/{schedule.epochs}"),
        )
        for step, batch in enumerate(bar):
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(schedule, epoch + step / self.steps)
            with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bfloat16):
                loss = self.task.loss(batch)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise SparseRefineError(
                    f"expected a finite loss, got {value} in epoch {epoch + 1}; "
                    f"lower learning_rate, then resume from {LAST}, which is from before"
                )
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(module.parameters(), schedule.gradient_clip)
            self.optimiser.step()
            self.average.update_parameters(module)
            total += value
            bar.set_postfix(loss=f"{total / (step + 1):.3f}", best=f"{max(self.best, 0):.3f}")
        return total / self.steps

    def save(self, path: Path, epochs_done: int) -> None:
        """Write everything a resumed run needs."""
        state = {
            "module": self.task.module.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "epochs_done": epochs_done,
        }
        save_checkpoint(path, state)

    def restore(self, path: Path) -> int:
        """Read what `save` wrote; return the number of finished epochs, 0 without a checkpoint."""
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True)
        self.task.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.best = state["best"]
        return int(state["epochs_done"])


def learning_rate(schedule: Schedule, epoch: float) -> float:
    """Linear warm-up, then a cosine that reaches zero after the last epoch."""
    if epoch < schedule.warmup_epochs:
        return schedule.learning_rate * (epoch + 1e-3) / schedule.warmup_epochs
    done = (epoch - schedule.warmup_epochs) / max(1e-9, schedule.epochs - schedule.warmup_epochs)
    return schedule.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def _batches(task: Task, schedule: Schedule, seed: int, epoch: int) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    loader: DataLoader[Any] = DataLoader(
        task.crops,
        batch_size=schedule.batch_size,
        shuffle=True,
        generator=generator,
        num_workers=schedule.workers,
        collate_fn=task.collate,
    )
    return iter(loader)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write aside, then rename: a kill or a full disk never leaves half a checkpoint."""
    aside = path.with_suffix(".tmp")
    torch.save(state, aside)
    aside.replace(path)


def _log(path: Path, epoch: int, loss: float, score: float) -> None:
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        if fresh:
            writer.writerow(["epoch", "loss", "score"])
        writer.writerow([epoch, f"{loss:.5f}", "" if math.isnan(score) else f"{score:.5f}"])
