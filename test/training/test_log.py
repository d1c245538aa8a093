# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest

from sparserefine_ros.errors import ConfigurationError, SparseRefineError
from sparserefine_ros.training.log import LOG, TENSORBOARD, TrainingLog

EPOCHS = ((1, 2.5, math.nan, 0.1), (2, 1.25, 0.5, 0.05), (3, 1.0, 0.75, 0.0))


def write_epochs(folder: Path, numbers: range, *, tensorboard: bool = False) -> None:
    log = TrainingLog(folder, numbers.start - 1, tensorboard=tensorboard)
    for epoch, loss, score, rate in EPOCHS[numbers.start - 1 : numbers.stop - 1]:
        log.add(epoch, loss=loss, score=score, learning_rate=rate)
    log.close()


def rows(folder: Path) -> list[list[str]]:
    with (folder / LOG).open(newline="") as stream:
        return list(csv.reader(stream))


ALL_ROWS = [
    ["epoch", "loss", "score"],
    ["1", "2.50000", ""],
    ["2", "1.25000", "0.50000"],
    ["3", "1.00000", "0.75000"],
]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / TENSORBOARD))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_one_row_for_each_epoch(tmp_path: Path) -> None:
    write_epochs(tmp_path, range(1, 4))
    assert rows(tmp_path) == ALL_ROWS
    assert [path.name for path in tmp_path.iterdir()] == [LOG]


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_resumed_run_drops_rows_beyond_its_checkpoint(tmp_path: Path, tensorboard: bool) -> None:
    write_epochs(tmp_path, range(1, 4), tensorboard=tensorboard)
    (tmp_path / LOG).write_text((tmp_path / LOG).read_text().replace("0.50000", "0.12345") + "4,")
    write_epochs(tmp_path, range(2, 4), tensorboard=tensorboard)
    assert rows(tmp_path) == ALL_ROWS
    if tensorboard:
        assert scalars(tmp_path)["loss"] == [(1, 2.5), (2, 1.25), (3, 1.0)]


def test_tensorboard_scalars(tmp_path: Path) -> None:
    write_epochs(tmp_path, range(1, 4), tensorboard=True)
    found = scalars(tmp_path)
    assert found.keys() == {"loss", "score", "learning_rate"}
    assert found["loss"] == [(1, 2.5), (2, 1.25), (3, 1.0)]
    assert found["score"] == [(2, 0.5), (3, 0.75)]
    assert found["learning_rate"] == [
        (step, pytest.approx(rate)) for step, rate in ((1, 0.1), (2, 0.05), (3, 0.0))
    ]


def test_tensorboard_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigurationError, match="pip install tensorboard"):
        TrainingLog(tmp_path, 0, tensorboard=True)
    TrainingLog(tmp_path, 0, tensorboard=False)


def test_a_full_disk(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, 0, tensorboard=False)
    log.add(1, loss=2.5, score=math.nan, learning_rate=0.1)
    (tmp_path / ".log.csv.partial").symlink_to("/dev/full")
    with pytest.raises(SparseRefineError, match=r"cannot write .*log\.csv: No space left on"):
        log.add(2, loss=1.25, score=0.5, learning_rate=0.05)
    assert rows(tmp_path) == ALL_ROWS[:2]
