# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files are read without running what they hold."""

from __future__ import annotations

import collections
import os
import pickle
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparserefine_ros.errors import CheckpointError
from sparserefine_ros.zoo.checkpoints.files import read_state

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1, 2])}


def check(path: Path) -> None:
    found = read_state(path)
    assert found.keys() == STATE.keys()
    for key, value in STATE.items():
        assert torch.equal(found[key], value)


class Make:
    """Pickled, it asks the reader to create a folder."""

    def __init__(self, path: Path, call: Callable[..., Any] = shutil.copytree) -> None:
        self.path, self.call = path, call

    def __reduce__(self) -> tuple[Any, ...]:
        given = (str(self.path),)
        return self.call, given if self.call is os.mkdir else (str(Path(__file__).parent), *given)


def foreign_class(monkeypatch: pytest.MonkeyPatch, name: str = "HistoryBuffer") -> type:
    """A class of a module that is gone when the file is read."""
    module = types.ModuleType("trainer_of_theirs")
    kind = type(name, (), {"__module__": "trainer_of_theirs"})
    setattr(module, name, kind)
    monkeypatch.setitem(sys.modules, "trainer_of_theirs", module)
    return kind


# PyTorch's present format, and that of before 1.6, in which OpenMMLab publishes.
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])


def save(content: object, path: Path, zipped: bool) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


@FORMATS
@pytest.mark.parametrize("wrapped", [False, True])
def test_state_dicts_bare_and_wrapped(tmp_path: Path, wrapped: bool, zipped: bool) -> None:
    content: Any = {"state_dict": STATE, "epoch": 3, "note": None} if wrapped else STATE
    save(content, tmp_path / "w.pth", zipped)
    check(tmp_path / "w.pth")


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    check(tmp_path / "w.safetensors")


@FORMATS
def test_objects_of_missing_packages_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    kind = foreign_class(monkeypatch)
    log = kind()
    log.values = collections.deque([np.float64(1.5), np.float32(2.0)], maxlen=4)
    log.array = np.arange(3)
    content = {
        "state_dict": STATE,
        "message_hub": {"log": log, "kinds": [kind, collections.defaultdict]},
        "hyper_parameters": {
            "path": Path("x"),
            "counts": collections.Counter("aab"),
            "resolved": collections.defaultdict(dict, {"now": {"%Y": "2024"}}),
        },
    }
    save(content, tmp_path / "w.ckpt", zipped)
    monkeypatch.delitem(sys.modules, "trainer_of_theirs")
    check(tmp_path / "w.ckpt")


@FORMATS
@pytest.mark.parametrize("where", ["beside", "within"])
def test_nothing_a_file_asks_for_is_called(tmp_path: Path, where: str, zipped: bool) -> None:
    made = tmp_path / "made"
    state = {**STATE, "extra": Make(made)} if where == "within" else STATE
    save({"state_dict": state, "x": Make(made)}, tmp_path / "w.pth", zipped)
    check(tmp_path / "w.pth")
    assert not made.exists()


@FORMATS
def test_calls_of_the_operating_system_are_refused(tmp_path: Path, zipped: bool) -> None:
    made = tmp_path / "made"
    save({"state_dict": STATE, "x": Make(made, os.mkdir)}, tmp_path / "w.pth", zipped)
    with pytest.raises(CheckpointError, match=r"w.pth cannot be read .*mkdir"):
        read_state(tmp_path / "w.pth")
    assert not made.exists()


def test_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"state_dict": Make(made)}))
    with pytest.raises(CheckpointError, match=r"w.pth"):
        read_state(tmp_path / "w.pth")
    assert not made.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=name):
        read_state(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=name):
        read_state(path)


def test_no_file_and_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found none at"):
        read_state(tmp_path / "none.pth")
    torch.save({"state_dict": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"expected a state dict, .* got list"):
        read_state(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match=r"expected tensors by name, got 'epoch'"):
        read_state(tmp_path / "empty.pth")
