# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import errno
import itertools
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_task import SCHEDULE, ToyTask, Weights, copy_of

from sparserefine_ros.errors import ConfigurationError, SparseRefineError
from sparserefine_ros.training import processes
from sparserefine_ros.training.checkpoint import BEST, LAST, save_checkpoint
from sparserefine_ros.training.log import LOG
from sparserefine_ros.training.loop import fit, learning_rate
from sparserefine_ros.training.recipe import Schedule

ITEMS = 10


def same(a: Any, b: Any) -> bool:
    """Deep, bitwise equality of nested states."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def rows(folder: Path) -> list[list[str]]:
    with (folder / LOG).open(newline="") as stream:
        return list(csv.reader(stream))


def stop_at(step: int) -> Callable[[int], float]:
    def hook(now: int) -> float:
        if now == step:
            raise KeyboardInterrupt
        return 1.0

    return hook


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, Weights]:
    """Folder, best score and final weights of a whole run."""
    folder, task = tmp_path_factory.mktemp("runs") / "whole", ToyTask()
    score = fit(task, SCHEDULE, folder, seed=3, resume=False)
    return folder, score, copy_of(task.module.state_dict())


class TestResume:
    # Three steps per epoch: mid-epoch, first step and last step of an epoch, several epochs.
    @pytest.mark.parametrize("step", [2, 4, 6, 8, 13, 15])
    def test_equals_an_uninterrupted_run(
        self, uninterrupted: tuple[Path, float, Weights], tmp_path: Path, step: int
    ) -> None:
        whole, score, weights = uninterrupted
        folder = tmp_path / "run"
        with pytest.raises(KeyboardInterrupt):
            fit(ToyTask(loss_hook=stop_at(step)), SCHEDULE, folder, seed=3, resume=False)
        # Before the first checkpoint a fresh start needs the same first weights.
        task = ToyTask(seed=1 if step <= 3 else 99)
        assert fit(task, SCHEDULE, folder, seed=3, resume=True) == score
        assert len(task.seen) < 15 or step <= 3
        assert same(copy_of(task.module.state_dict()), weights)
        for name in (LAST, BEST):
            assert same(load(folder / name), load(whole / name))
        assert rows(folder) == rows(whole)

    def test_resuming_a_finished_run_trains_no_further(
        self, uninterrupted: tuple[Path, float, Weights], tmp_path: Path
    ) -> None:
        _, score, weights = uninterrupted
        folder = tmp_path / "run"
        fit(ToyTask(), SCHEDULE, folder, seed=3, resume=False)
        task = ToyTask(seed=99)
        assert fit(task, SCHEDULE, folder, seed=3, resume=True) == score
        assert task.seen == []
        assert same(copy_of(task.module.state_dict()), weights)

    def test_an_existing_run_is_not_overwritten(self, tmp_path: Path) -> None:
        schedule = SCHEDULE.model_copy(update={"epochs": 1})
        fit(ToyTask(), schedule, tmp_path, seed=3, resume=False)
        before = (tmp_path / LAST).read_bytes()
        task = ToyTask()
        with pytest.raises(ConfigurationError, match="already holds a run; pass --resume"):
            fit(task, schedule, tmp_path, seed=3, resume=False)
        assert task.seen == []
        assert (tmp_path / LAST).read_bytes() == before

    def test_resume_without_a_run_starts_one(
        self, uninterrupted: tuple[Path, float, Weights], tmp_path: Path
    ) -> None:
        task = ToyTask()
        assert fit(task, SCHEDULE, tmp_path / "new", seed=3, resume=True) == uninterrupted[1]
        assert same(copy_of(task.module.state_dict()), uninterrupted[2])

    def test_the_run_of_another_network(self, tmp_path: Path) -> None:
        schedule = SCHEDULE.model_copy(update={"epochs": 1})
        fit(ToyTask(), schedule, tmp_path, seed=3, resume=False)
        task = ToyTask()
        task.module = nn.Sequential(nn.Linear(4, 2))
        with pytest.raises(ConfigurationError, match=r"last\.pt does not fit the recipe; resume"):
            fit(task, schedule, tmp_path, seed=3, resume=True)

    def test_the_run_of_another_recipe(self, tmp_path: Path) -> None:
        one = SCHEDULE.model_copy(update={"epochs": 1})
        origin = {"train": ["here"], "seed": 3}
        fit(ToyTask(), one, tmp_path, seed=3, resume=False, origin=origin)
        before = (tmp_path / LAST).read_bytes()
        changed = {"train": ["there"], "seed": 3}
        expected = r"another train \(train: \['here'\], now \['there'\]\); resume with the recipe"
        with pytest.raises(ConfigurationError, match=expected):
            fit(ToyTask(), SCHEDULE, tmp_path, seed=3, resume=True, origin=changed)
        assert (tmp_path / LAST).read_bytes() == before
        fit(ToyTask(), SCHEDULE, tmp_path, seed=3, resume=True, origin=origin)
        assert load(tmp_path / LAST)["epochs_done"] == SCHEDULE.epochs

    def test_fewer_epochs_than_are_done(
        self, uninterrupted: tuple[Path, float, Weights], tmp_path: Path
    ) -> None:
        folder = shutil.copytree(uninterrupted[0], tmp_path / "copy")
        schedule = SCHEDULE.model_copy(update={"epochs": 3})
        with pytest.raises(ConfigurationError, match="has 5 epochs, the recipe asks for 3; resume"):
            fit(ToyTask(), schedule, folder, seed=3, resume=True)

    def test_what_a_checkpoint_holds(self, uninterrupted: tuple[Path, float, Weights]) -> None:
        state = load(uninterrupted[0] / LAST)
        assert state.keys() == {"module", "average", "optimiser", "best", "epochs_done", "origin"}
        plain = ToyTask(seed=99)
        optimiser = torch.optim.AdamW(plain.module.parameters())
        optimiser.load_state_dict(state["optimiser"])
        plain.module.load_state_dict(state["module"])
        assert same(copy_of(plain.module.state_dict()), state["module"])
        assert state["average"].keys() == {
            "n_averaged",
            *(f"module.{key}" for key in state["module"]),
        }


class TestFullDisk:
    def test_stops_with_the_file_s_name_and_resumes(
        self, uninterrupted: tuple[Path, float, Weights], tmp_path: Path
    ) -> None:
        # Seventh step: the first of the third epoch. Writing to /dev/full finds no space left.
        def fill(step: int) -> float:
            if step == 7:
                (tmp_path / ".last.pt.partial").symlink_to("/dev/full")
            return 1.0

        with pytest.raises(SparseRefineError) as caught:
            fit(ToyTask(loss_hook=fill), SCHEDULE, tmp_path, seed=3, resume=False)
        assert str(caught.value) == (
            f"cannot write {tmp_path / LAST}: No space left on device; "
            "make room or grant access, then try again"
        )
        assert load(tmp_path / LAST)["epochs_done"] == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == [BEST, LAST, LOG]
        task = ToyTask(seed=99)
        assert fit(task, SCHEDULE, tmp_path, seed=3, resume=True) == uninterrupted[1]
        assert same(copy_of(task.module.state_dict()), uninterrupted[2])
        assert rows(tmp_path) == rows(uninterrupted[0])

    def test_a_checkpoint_is_written_whole_or_not_at_all(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_checkpoint(tmp_path / LAST, {"epochs_done": 1})
        plain = Path.write_bytes

        def half(self: Path, content: memoryview) -> int:
            plain(self, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", half)
        with pytest.raises(
            SparseRefineError, match=r"last\.pt: No space left on device; make room"
        ):
            save_checkpoint(tmp_path / LAST, {"epochs_done": 2})
        assert load(tmp_path / LAST) == {"epochs_done": 1}
        assert [path.name for path in tmp_path.iterdir()] == [LAST]

    def test_a_damaged_checkpoint(self, tmp_path: Path) -> None:
        schedule = SCHEDULE.model_copy(update={"epochs": 1})
        fit(ToyTask(), schedule, tmp_path, seed=3, resume=False)
        content = (tmp_path / LAST).read_bytes()
        for damaged in (b"", b"junk", content[: len(content) // 2]):
            (tmp_path / LAST).write_bytes(damaged)
            with pytest.raises(SparseRefineError, match=r"cannot read .*last\.pt as a checkpoint"):
                fit(ToyTask(), schedule, tmp_path, seed=3, resume=True)


class TestAccumulation:
    # Ten batches of one: groups of five and five, or of three, three, three and one.
    @pytest.mark.parametrize("accumulate", [5, 3])
    def test_steps_on_the_mean_of_its_batches(self, tmp_path: Path, accumulate: int) -> None:
        schedule = SCHEDULE.model_copy(update={"epochs": 2, "warmup_epochs": 0.0})
        large, small = (ToyTask(batch_norm=False) for _ in range(2))
        whole = schedule.model_copy(update={"batch_size": accumulate})
        fit(large, whole, tmp_path / "large", seed=3, resume=False)
        parts = schedule.model_copy(update={"batch_size": 1, "accumulate": accumulate})
        fit(small, parts, tmp_path / "small", seed=3, resume=False)
        assert [len(batch) for batch in small.seen] == [1] * 20
        joined = [point for batch in large.seen for point in batch]
        assert [batch[0] for batch in small.seen] == joined
        # The same sums in another order, twice divided.
        for a, b in zip(large.module.parameters(), small.module.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        losses = [[float(row[1]) for row in rows(tmp_path / run)[1:]] for run in ("large", "small")]
        if accumulate == 5:
            assert losses[0] == pytest.approx(losses[1], abs=2e-5)

    def test_it_matters(self, tmp_path: Path) -> None:
        first, second = ToyTask(batch_norm=False), ToyTask(batch_norm=False)
        for task, accumulate in ((first, 1), (second, 2)):
            schedule = SCHEDULE.model_copy(update={"epochs": 1, "accumulate": accumulate})
            fit(task, schedule, tmp_path / str(accumulate), seed=3, resume=False)
        assert not torch.allclose(*(next(t.module.parameters()) for t in (first, second)))


class TestBfloat16:
    @pytest.mark.parametrize("native", [False, True])
    def test_only_where_the_device_multiplies_it(
        self,
        native: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(processes, "multiplies_bfloat16", lambda device: native)
        weights = []
        for bfloat16 in (False, True):
            task = ToyTask()
            schedule = SCHEDULE.model_copy(update={"bfloat16": bfloat16})
            fit(task, schedule, tmp_path / str(bfloat16), seed=3, resume=False)
            weights.append(copy_of(task.module.state_dict()))
        assert same(*weights) == (not native)
        assert ("training in float32" in caplog.text) == (not native)


class TestBadLoss:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_stops_and_keeps_the_last_checkpoint(
        self, uninterrupted: tuple[Path, float, Weights], tmp_path: Path, value: float
    ) -> None:
        # Eighth step: the second of the third epoch.
        task = ToyTask(loss_hook=lambda step: value if step == 8 else 1.0)
        message = rf"expected a finite loss, got {value} in epoch 3; lower learning_rate"
        with pytest.raises(SparseRefineError, match=message):
            fit(task, SCHEDULE, tmp_path, seed=3, resume=False)
        state = load(tmp_path / LAST)
        assert state["epochs_done"] == 2
        assert all(value.isfinite().all() for value in state["module"].values())
        assert len(rows(tmp_path)) == 3
        resumed = ToyTask(seed=99)
        assert fit(resumed, SCHEDULE, tmp_path, seed=3, resume=True) == uninterrupted[1]
        assert same(copy_of(resumed.module.state_dict()), uninterrupted[2])

    def test_a_step_that_spoils_the_weights_is_not_saved(
        self, uninterrupted: tuple[Path, float, Weights], tmp_path: Path
    ) -> None:
        """The last one of an epoch, which no loss comes after."""

        class Spoilt(ToyTask):
            def loss(self, batch: Tensor) -> Tensor:
                found = super().loss(batch)
                if len(self.seen) == 9:  # its gradient is not finite though it is
                    weight = next(iter(self.module.parameters()))
                    found = found + (weight.sum() * 0.0).sqrt()
                return found

        message = r"expected a finite gradient, got nan in epoch 3; lower learning_rate"
        with pytest.raises(SparseRefineError, match=message):
            fit(Spoilt(), SCHEDULE, tmp_path, seed=3, resume=False)
        assert load(tmp_path / LAST)["epochs_done"] == 2
        resumed = ToyTask(seed=99)
        assert fit(resumed, SCHEDULE, tmp_path, seed=3, resume=True) == uninterrupted[1]

    def test_weights_that_are_not_finite_are_not_saved(self, tmp_path: Path) -> None:
        class Overflowing(ToyTask):
            def loss(self, batch: Tensor) -> Tensor:
                if len(self.seen) == 5:  # as statistics of a norm do
                    self.module[1].running_var.fill_(math.inf)  # type: ignore[operator, union-attr]
                return super().loss(batch)

        with pytest.raises(SparseRefineError, match="finite network, got weights that are not"):
            fit(Overflowing(), SCHEDULE, tmp_path, seed=3, resume=False)
        assert load(tmp_path / LAST)["epochs_done"] == 1

    def test_nothing_to_learn_from(self, tmp_path: Path) -> None:
        task = ToyTask(loss_hook=lambda _: 0.0)
        with pytest.raises(SparseRefineError, match=r"training data with labelled pixels, .* 1;"):
            fit(task, SCHEDULE, tmp_path, seed=3, resume=False)

    def test_a_score_that_is_never_a_number(self, tmp_path: Path) -> None:
        # What validation data without a single labelled pixel gives.
        task = ToyTask(scores=[math.nan] * 5)
        with pytest.raises(SparseRefineError, match="validation"):
            fit(task, SCHEDULE, tmp_path, seed=3, resume=False)


class TestBest:
    def test_the_best_validated_weights_are_kept(self, tmp_path: Path) -> None:
        # Validated after epochs 2, 4 and 5.
        task = ToyTask(scores=[0.2, 0.9, 0.4])
        assert fit(task, SCHEDULE, tmp_path, seed=3, resume=False) == 0.9
        assert len(task.scored) == 3
        assert same(copy_of(task.module.state_dict()), task.scored[1])
        assert not same(task.scored[1], task.scored[2])
        assert same(load(tmp_path / BEST)["module"], task.scored[1])

    def test_log(self, tmp_path: Path) -> None:
        task = ToyTask(scores=[0.25, 0.5, 0.125])
        fit(task, SCHEDULE, tmp_path, seed=3, resume=False)
        head, *lines = rows(tmp_path)
        assert head == ["epoch", "loss", "score"]
        assert [line[0] for line in lines] == ["1", "2", "3", "4", "5"]
        assert [line[2] for line in lines] == ["", "0.25000", "", "0.50000", "0.12500"]
        losses = [float(line[1]) for line in lines]
        assert losses[-1] < losses[0]

    def test_tensorboard_on_demand(self, tmp_path: Path) -> None:
        for asked in (False, True):
            schedule = SCHEDULE.model_copy(update={"epochs": 1, "tensorboard": asked})
            fit(ToyTask(), schedule, tmp_path / str(asked), seed=3, resume=False)
            assert (tmp_path / str(asked) / "tensorboard").exists() == asked

    def test_the_bar_covers_the_whole_training(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        with pytest.raises(KeyboardInterrupt):
            fit(ToyTask(loss_hook=stop_at(8)), SCHEDULE, tmp_path, seed=3, resume=False)
        capsys.readouterr()
        fit(ToyTask(), SCHEDULE, tmp_path, seed=3, resume=True)
        shown = capsys.readouterr().err
        assert "6/15" in shown
        assert "epoch 5/5: 100%" in shown

    def test_a_file_gets_a_line_for_each_epoch(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fit(ToyTask(scores=[0.25, 0.5, 0.125]), SCHEDULE, tmp_path, seed=3, resume=False)
        lines = capsys.readouterr().err.splitlines()
        assert [line.partition(":")[0] for line in lines] == [f"epoch {i}/5" for i in range(1, 6)]
        assert "score" not in lines[0]
        assert lines[4].endswith(", score 0.1250, best 0.5000")


class TestEpoch:
    def test_every_item_once_in_an_order_of_its_own(self, tmp_path: Path) -> None:
        task = ToyTask()
        fit(task, SCHEDULE, tmp_path, seed=3, resume=False)
        assert [len(batch) for batch in task.seen] == [4, 4, 2] * 5
        orders = []
        for epoch in range(5):
            seen = list(itertools.chain(*task.seen[3 * epoch : 3 * epoch + 3]))
            task.crops.set_epoch(epoch)
            items = [task.crops[i].tolist() for i in range(ITEMS)]
            orders.append([items.index(item) for item in seen])
            assert sorted(orders[-1]) == list(range(ITEMS))
        assert len({tuple(order) for order in orders}) == 5

    def test_worker_processes_change_nothing(
        self, uninterrupted: tuple[Path, float, Weights], tmp_path: Path
    ) -> None:
        task = ToyTask()
        schedule = SCHEDULE.model_copy(update={"workers": 1})
        assert fit(task, schedule, tmp_path, seed=3, resume=False) == uninterrupted[1]
        assert same(copy_of(task.module.state_dict()), uninterrupted[2])


class TestLearningRate:
    def test_warms_up_then_falls_to_zero(self) -> None:
        schedule = Schedule(epochs=10, batch_size=1, learning_rate=0.2, warmup_epochs=2.0)
        rates = [learning_rate(schedule, epoch / 10) for epoch in range(101)]
        assert 0 < rates[0] < 0.001
        assert rates[10] == pytest.approx(0.1, rel=0.01)
        assert rates[20] == pytest.approx(0.2)
        assert rates[60] == pytest.approx(0.1)
        assert rates[100] == pytest.approx(0.0, abs=1e-12)
        assert rates[:21] == sorted(rates[:21])
        assert rates[20:] == sorted(rates[20:], reverse=True)

    @pytest.mark.parametrize("warmup", [0.0, 3.0])
    def test_without_room_for_one_part(self, warmup: float) -> None:
        schedule = Schedule(epochs=3, batch_size=1, learning_rate=0.2, warmup_epochs=warmup)
        rates = [learning_rate(schedule, epoch / 4) for epoch in range(13)]
        assert all(0 <= rate <= 0.2 for rate in rates)
        assert max(rates) > 0.1
