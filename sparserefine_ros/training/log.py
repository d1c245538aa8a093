# SPDX-License-Identifier: Apache-2.0
"""The log of a training: a CSV file and, where asked for, TensorBoard scalars."""

from __future__ import annotations

import csv
import math
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.files import write_text_whole

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG: Final = "log.csv"
TENSORBOARD: Final = "tensorboard"
_HEAD: Final = ["epoch", "loss", "score"]


class TrainingLog:
    """One row for each epoch.

    Args:
        folder: `log.csv` and the folder `tensorboard` go here.
        epochs_done: finished epochs of the run; rows beyond, of an interrupted run, are dropped.
        tensorboard: whether to write TensorBoard scalars too.

    Raises:
        ConfigurationError: TensorBoard is asked for but not installed.
    """

    def __init__(self, folder: Path, epochs_done: int, *, tensorboard: bool) -> None:
        self._path = folder / LOG
        self._board: SummaryWriter | None = None
        if tensorboard:
            self._board = _open_board(folder / TENSORBOARD, epochs_done)
        self._rows = [_HEAD]
        if self._path.exists():
            with self._path.open(newline="", encoding="utf-8") as stream:
                self._rows += [row for row in csv.reader(stream) if _is_of(row, epochs_done)]

    def add(self, epoch: int, *, loss: float, score: float, learning_rate: float) -> None:
        """Write the row of an epoch, counted from 1; a score that is NaN was not measured.

        Raises:
            SparseRefineError: the log cannot be written.
        """
        measured = not math.isnan(score)
        self._rows.append([str(epoch), f"{loss:.5f}", f"{score:.5f}" if measured else ""])
        text = StringIO(newline="")
        csv.writer(text).writerows(self._rows)
        write_text_whole(self._path, text.getvalue())
        if self._board is None:
            return
        scalars = {"loss": loss, "learning_rate": learning_rate}
        for name, value in (scalars | {"score": score} if measured else scalars).items():
            self._board.add_scalar(name, value, epoch)
        self._board.flush()

    def close(self) -> None:
        """Close the files."""
        if self._board is not None:
            self._board.close()


def _is_of(row: list[str], epochs_done: int) -> bool:
    return len(row) == len(_HEAD) and row[0].isdigit() and int(row[0]) <= epochs_done


def _open_board(folder: Path, epochs_done: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise ConfigurationError(
            "schedule.tensorboard: expected the package tensorboard, found none; "
            "install it: pip install tensorboard, or set it to false"
        ) from err
    return SummaryWriter(str(folder), purge_step=epochs_done + 1)
