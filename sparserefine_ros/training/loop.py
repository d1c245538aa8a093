# SPDX-License-Identifier: Apache-2.0
"""The training loop shared by dense networks, refiners and selectors.

A `Task` says what a batch, a loss and a score are; `fit` does the rest: AdamW, cosine schedule,
gradient accumulation, averaged weights, progress bar, log, best and last checkpoint, resume. It
runs in one process or in several (data parallel), on GPUs or on the CPU, see `processes`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparserefine_ros.errors import ConfigurationError, SparseRefineError
from sparserefine_ros.training.average import moving_average
from sparserefine_ros.training.batches import EpochDataset, in_groups, make_batches
from sparserefine_ros.training.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint
from sparserefine_ros.training.log import TrainingLog
from sparserefine_ros.training.memory import keep_freed_memory, return_freed_memory
from sparserefine_ros.training.processes import can_use_bfloat16, in_main_process, open_accelerator
from sparserefine_ros.training.recipe import Schedule
from sparserefine_ros.training.run_folder import refuse_existing_run


class Task(Protocol):
    """What is trained."""

    @property
    def module(self) -> nn.Module:
        """The trained network; `fit` moves it to the device it trains on, and back."""

    @property
    def crops(self) -> EpochDataset:
        """One epoch of training crops."""

    def collate(self, items: list[Any]) -> Any:
        """Join the items of `crops` into a batch, on the CPU."""

    def loss(self, batch: Any) -> Tensor:
        """Scalar loss of a batch, with a gradient for every weight of `module`."""

    def score(self, module: nn.Module) -> float:
        """How good `module` is on the validation data, 0 .. 1; such as mean IoU."""


def fit(
    task: Task,
    schedule: Schedule,
    folder: Path,
    *,
    seed: int,
    resume: bool,
    origin: Mapping[str, Any] | None = None,
) -> float:
    """Train `task.module`, leave the best weights in it, on the CPU, and return their score.

    Args:
        task: what is trained.
        schedule: optimisation.
        folder: checkpoints `last.pt` and `best.pt` and the log go here.
        seed: order of the crops.
        resume: go on from `last.pt` where there is one.
        origin: what else the weights depend on, as plain values; a run goes on only where it is
            the same.

    Raises:
        ConfigurationError: `folder` already holds a run and `resume` is false, it holds the run of
            another network or origin, or a package that `schedule` needs is not installed.
        SparseRefineError: loss, gradient or weights became NaN or infinite, no pixel is labelled,
            the processes that prepare the crops died, or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refuse_existing_run(folder, resume=resume)
    run = _Run(task, schedule, seed, origin or {})
    first = run.restore(folder / LAST) if resume else 0
    log = TrainingLog(folder, first, tensorboard=schedule.tensorboard) if run.is_main else None
    with run.progress_bar(first) as bar:
        for epoch in range(first, schedule.epochs):
            loss = run.train_epoch(epoch, bar)
            run.check_weights(epoch)
            last = epoch + 1 == schedule.epochs
            score = math.nan
            if last or (epoch + 1) % schedule.validate_every == 0:
                score = run.validate(folder / BEST)
            if log is not None:
                run.tell(epoch, loss, score, bar)
                # Before the checkpoint: a resumed run drops what was logged beyond it.
                log.add(epoch + 1, loss=loss, score=score, learning_rate=run.learning_rate)
                run.save(folder / LAST, epoch + 1)
    if log is not None:
        log.close()
    run.take_best(folder / BEST)
    return run.best


class _LossOf(nn.Module):
    """A task's loss as a forward pass: what data parallelism wraps."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module = task.module
        self._task = task

    def forward(self, batch: Any) -> Tensor:
        return self._task.loss(batch)


class _Run:
    """State of one training: optimiser, averaged weights, best score."""

    def __init__(
        self, task: Task, schedule: Schedule, seed: int, origin: Mapping[str, Any]
    ) -> None:
        self.task, self.schedule, self._seed = task, schedule, seed
        self._origin = dict(origin)
        self._accelerator = open_accelerator()
        self.is_main: bool = self._accelerator.is_main_process
        self._device: torch.device = self._accelerator.device
        if self._device.type == "cpu":
            keep_freed_memory()
        self._bfloat16 = schedule.bfloat16 and can_use_bfloat16(self._device)
        task.module.to(self._device)
        self.average = moving_average(task.module, schedule.average_decay)
        optimiser = torch.optim.AdamW(
            task.module.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self._generator = torch.Generator()
        batches = make_batches(task.crops, task.collate, schedule, self._generator)
        self._loss_of, self.optimiser, self._batches = self._accelerator.prepare(
            _LossOf(task), optimiser, batches
        )
        self.steps = math.ceil(len(self._batches) / schedule.accumulate)
        self.best = -math.inf

    @property
    def learning_rate(self) -> float:
        """That of the last step."""
        return float(self.optimiser.param_groups[0]["lr"])

    def progress_bar(self, first: int) -> tqdm[Any]:
        """A bar over the steps of the whole training, of which `first` epochs are done."""
        total, done = self.schedule.epochs * self.steps, first * self.steps
        # In a file, such as a log, a line for each epoch says more.
        hidden = not (self.is_main and sys.stderr.isatty())
        return tqdm(total=total, initial=done, unit="step", disable=hidden)

    def train_epoch(self, epoch: int, bar: tqdm[Any]) -> float:
        """Return the mean loss over the batches of all processes."""
        return_freed_memory()  # the workers of the batches are about to be forked
        self._loss_of.train()
        self._batches.set_epoch(epoch)
        self._generator.manual_seed(self._seed * 100_003 + epoch)
        bar.set_description(f"epoch {epoch + 1}/{self.schedule.epochs}")
        total, count = 0.0, 0
        for step, group in enumerate(in_groups(self._batches, self.schedule.accumulate)):
            for parameters in self.optimiser.param_groups:
                parameters["lr"] = learning_rate(self.schedule, epoch + step / self.steps)
            total += self._update(group, epoch)
            count += len(group)
            shown = {"loss": f"{total / count:.3f}"}
            if math.isfinite(self.best):
                shown["best"] = f"{self.best:.3f}"
            bar.set_postfix(shown, refresh=False)
            bar.update()
        mean = torch.tensor(total / count, dtype=torch.float64, device=self._device)
        loss = float(self._accelerator.reduce(mean, "mean"))
        if loss == 0.0:
            raise SparseRefineError(
                f"expected training data with labelled pixels, and a selector that takes some of "
                f"them, found none in epoch {epoch + 1}; correct train, its label files or the "
                "selector"
            )
        return loss

    def tell(self, epoch: int, loss: float, score: float, bar: tqdm[Any]) -> None:
        """A line for the epoch, above the bar."""
        scored = "" if math.isnan(score) else f", score {score:.4f}, best {self.best:.4f}"
        line = f"epoch {epoch + 1}/{self.schedule.epochs}: loss {loss:.4f}{scored}"
        bar.write(line, file=sys.stderr)

    def _update(self, group: list[Any], epoch: int) -> float:
        """One step on the mean loss of some batches; return the sum of their losses."""
        total = 0.0
        self.optimiser.zero_grad(set_to_none=True)
        for i, batch in enumerate(group, 1):
            # Processes exchange their gradients once, with the last batch.
            alone = i < len(group)
            with self._accelerator.no_sync(self._loss_of) if alone else nullcontext():
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
                    loss = self._loss_of(batch)
                total += _finite(loss, epoch)
                self._accelerator.backward(loss / len(group))
        norm = self._accelerator.clip_grad_norm_(
            self.task.module.parameters(), self.schedule.gradient_clip
        )
        if norm is not None and not math.isfinite(norm):
            raise _diverged("gradient", float(norm), epoch)
        self.optimiser.step()
        self.average.update_parameters(self.task.module)
        return total

    def check_weights(self, epoch: int) -> None:
        """Raise SparseRefineError where a step has spoilt the weights."""
        values = self.task.module.state_dict().values()
        if not all(bool(each.isfinite().all()) for each in values):
            raise _diverged("network", "weights that are not", epoch)

    def validate(self, path: Path) -> float:
        """Score the averaged weights, and save them to `path` when they are the best so far."""
        score = in_main_process(lambda: self.task.score(self.average.module))
        if math.isnan(score):
            raise SparseRefineError(
                "expected validation data with labelled pixels, found none; "
                "correct validate_on or its label files"
            )
        if score >= self.best:
            self.best = score
            if self.is_main:
                save_checkpoint(path, {"module": self.average.module.state_dict()})
        return score

    def save(self, path: Path, epochs_done: int) -> None:
        """Write everything a resumed run needs."""
        state = {
            "module": self.task.module.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "epochs_done": epochs_done,
            "origin": self._origin,
        }
        save_checkpoint(path, state)

    def restore(self, path: Path) -> int:
        """Read what `save` wrote; return the number of finished epochs, 0 without a checkpoint."""
        if not path.exists():
            return 0
        state = load_checkpoint(path)
        _check_origin(state["origin"], self._origin, path)
        try:
            self.task.module.load_state_dict(state["module"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (KeyError, RuntimeError, ValueError) as err:
            raise ConfigurationError(
                f"{path} does not fit the recipe; resume with the recipe that wrote it, or choose "
                f"another folder ({err})"
            ) from err
        self.best, done = state["best"], int(state["epochs_done"])
        if done > self.schedule.epochs:
            raise ConfigurationError(
                f"{path} has {done} epochs, the recipe asks for {self.schedule.epochs}; resume "
                "with as many or more, or choose another folder"
            )
        return done

    def take_best(self, path: Path) -> None:
        """Put the best weights into the task's module, on the CPU."""
        self._accelerator.wait_for_everyone()
        self.task.module.load_state_dict(load_checkpoint(path)["module"])
        self.task.module.to("cpu")


def learning_rate(schedule: Schedule, epoch: float) -> float:
    """Linear warm-up, then a cosine that reaches zero after the last epoch."""
    if epoch < schedule.warmup_epochs:
        return schedule.learning_rate * (epoch + 1e-3) / schedule.warmup_epochs
    done = (epoch - schedule.warmup_epochs) / max(1e-9, schedule.epochs - schedule.warmup_epochs)
    return schedule.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def _check_origin(found: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    other = [key for key in found.keys() & expected.keys() if found[key] != expected[key]]
    if other:
        raise ConfigurationError(
            f"{path} was trained with another {', '.join(other)} ({other[0]}: {found[other[0]]}, "
            f"now {expected[other[0]]}); resume with the recipe that wrote it, or choose "
            "another folder"
        )


def _finite(loss: Tensor, epoch: int) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise _diverged("loss", value, epoch)
    return value


def _diverged(what: str, value: float | str, epoch: int) -> SparseRefineError:
    return SparseRefineError(
        f"expected a finite {what}, got {value} in epoch {epoch + 1}; "
        f"lower learning_rate, then resume from {LAST}, which is from before"
    )
