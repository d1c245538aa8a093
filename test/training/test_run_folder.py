# SPDX-License-Identifier: Apache-2.0
"""Folders that a training may fill."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_tiny_bundle

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import BundleError, ConfigurationError
from sparserefine_ros.training.run_folder import prepare_run_folder

WEIGHTS = "refiner.safetensors"


def test_a_new_folder_is_made_and_others_files_may_lie_in_it(tmp_path: Path) -> None:
    prepare_run_folder(tmp_path / "runs" / "new", WEIGHTS, resume=False)
    (tmp_path / "runs" / "new" / "notes.txt").write_text("x")
    prepare_run_folder(tmp_path / "runs" / "new", WEIGHTS, resume=False)


def test_a_run_goes_on_only_when_asked_to(tmp_path: Path) -> None:
    for name in ("last.pt", "best.pt", "log.csv", WEIGHTS):
        (tmp_path / name).write_text("x")
    prepare_run_folder(tmp_path, WEIGHTS, resume=True)
    with pytest.raises(ConfigurationError, match="already holds a run; pass --resume"):
        prepare_run_folder(tmp_path, WEIGHTS, resume=False)


@pytest.mark.parametrize("name", ["best.pt", "log.csv", WEIGHTS])
def test_files_of_something_else(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(ConfigurationError, match=f"with {name}, which the training would"):
        prepare_run_folder(tmp_path, WEIGHTS, resume=False)


def test_nothing_to_resume(tmp_path: Path) -> None:
    """A run that was stopped in its first epochs begins anew, and no file of another is lost."""
    for name in ("best.pt", "log.csv"):
        (tmp_path / name).write_text("x")
    prepare_run_folder(tmp_path, WEIGHTS, resume=True)
    (tmp_path / WEIGHTS).write_text("x")
    with pytest.raises(ConfigurationError, match=f"with {WEIGHTS}, which the training would"):
        prepare_run_folder(tmp_path, WEIGHTS, resume=True)


def test_the_bundle_trained_for_is_not_replaced(tmp_path: Path) -> None:
    bundle = Bundle.open(make_tiny_bundle(tmp_path / "run" / "bundle"))
    prepare_run_folder(tmp_path / "other", WEIGHTS, resume=False, bundle=bundle)
    with pytest.raises(ConfigurationError, match="another folder than that of the bundle"):
        prepare_run_folder(tmp_path / "run", WEIGHTS, resume=False, bundle=bundle)


@pytest.mark.parametrize("resume", [False, True])
def test_a_bundle_is_no_place_for_checkpoints(tiny_bundle: Path, resume: bool) -> None:
    with pytest.raises(ConfigurationError, match="is a bundle, whose files"):
        prepare_run_folder(tiny_bundle, WEIGHTS, resume=resume)


def test_a_folder_of_that_name_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(BundleError, match="to be a bundle or not to exist"):
        prepare_run_folder(tmp_path, WEIGHTS, resume=False)


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(ConfigurationError, match="expected a folder that can be written to"):
        prepare_run_folder(tmp_path / "out", WEIGHTS, resume=False)
