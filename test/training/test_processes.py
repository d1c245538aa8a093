# SPDX-License-Identifier: Apache-2.0
"""Training in two processes on the CPU."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_task
from toy_task import SCHEDULE, ToyTask

from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.training import processes
from sparserefine_ros.training.checkpoint import BEST, LAST
from sparserefine_ros.training.log import LOG
from sparserefine_ros.training.loop import fit


def rows(folder: Path) -> list[list[str]]:
    with (folder / LOG).open(newline="") as stream:
        return list(csv.reader(stream))


def test_two_processes_train_as_one_with_batches_of_both(
    tmp_path: Path, package_environment: dict[str, str]
) -> None:
    folder = tmp_path / "two"
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *launch, toy_task.__file__, str(folder)],
        env=package_environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Each of two processes takes two batches of one point for a step.
    alone = ToyTask(count=12, batch_norm=False)
    score = fit(alone, SCHEDULE, tmp_path / "one", seed=3, resume=False)

    reports = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    first, second = (report["seen"] for report in reports)
    together = [point for pair in zip(first, second, strict=True) for (point,) in pair]
    assert together == [point for batch in alone.seen for point in batch]
    assert [report["score"] for report in reports] == [score, score]
    # The main process alone validates, tells of the epochs and writes.
    assert [report["scored"] for report in reports] == [3, 0]
    assert done.stderr.count("epoch 1/5: loss") == 1
    names = ["rank0.json", "rank0.pt", "rank1.json", "rank1.pt"]
    assert sorted(p.name for p in folder.iterdir()) == sorted([BEST, LAST, LOG, *names])
    assert [row[0] for row in rows(folder)] == ["epoch", "1", "2", "3", "4", "5"]
    for row, row_alone in zip(rows(folder)[1:], rows(tmp_path / "one")[1:], strict=True):
        assert float(row[1]) == pytest.approx(float(row_alone[1]), abs=2e-5)

    weights: list[dict[str, Any]] = [
        torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)
    ]
    for key, value in alone.module.state_dict().items():
        assert torch.equal(weights[0][key], weights[1][key])
        # The same sums in another order.
        torch.testing.assert_close(weights[0][key], value, rtol=1e-4, atol=1e-6)


def test_accelerate_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigurationError, match="pip install 'accelerate"):
        processes.open_accelerator()


@pytest.mark.parametrize(("rank", "main"), [(None, True), ("0", True), ("1", False)])
def test_the_main_process(monkeypatch: pytest.MonkeyPatch, rank: str | None, main: bool) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert processes.is_main_process() == main


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "available_cores", lambda: 6)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert processes.threads_per_process() == 6
    for count, threads in ((2, 3), (4, 1), (8, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(count))
        assert processes.threads_per_process() == threads
