# SPDX-License-Identifier: Apache-2.0
"""The folder of a training run, checked before the work that fills it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sparserefine_ros.bundle import BUNDLE_FILE, Bundle, check_bundle_folder
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.files import prepare_folder
from sparserefine_ros.training.checkpoint import BEST, LAST
from sparserefine_ros.training.log import LOG

BUNDLE: Final = "bundle"


def refuse_existing_run(folder: Path, *, resume: bool) -> None:
    """Raise ConfigurationError where the folder holds a run that shall not go on."""
    if (folder / LAST).exists() and not resume:
        raise ConfigurationError(
            f"{folder} already holds a run; pass --resume or choose another folder"
        )


def prepare_run_folder(
    folder: Path, weights: str, *, resume: bool, bundle: Bundle | None = None
) -> None:
    """Make the folder of a run, and see that the run will overwrite nothing else.

    Args:
        folder: of the run.
        weights: name of the file with the trained weights.
        resume: whether a run that the folder holds goes on.
        bundle: what is trained for; None without one.

    Raises:
        ConfigurationError: it is none or cannot be made, it is a bundle, it already holds a run and
            `resume` is false, it holds files of the same names but no run, or the bundle itself.
        BundleError: its `bundle` is something else than a bundle.
    """
    prepare_folder(folder)
    if (folder / BUNDLE_FILE).exists():
        raise ConfigurationError(
            f"expected a folder for checkpoints, {folder} is a bundle, whose files the training "
            "would overwrite; choose another folder"
        )
    refuse_existing_run(folder, resume=resume)
    if not (folder / LAST).exists():
        # A run that was stopped in its first epochs may have left the others.
        for name in (weights,) if resume else (BEST, LOG, weights):
            if (folder / name).exists():
                raise ConfigurationError(
                    f"expected a new folder or one of a run, got {folder} with {name}, which the "
                    "training would overwrite; delete it, or choose another folder"
                )
    if bundle is not None and bundle.folder.resolve() == (folder / BUNDLE).resolve():
        raise ConfigurationError(
            f"expected another folder than that of the bundle trained for, which the trained one "
            f"in {folder / BUNDLE} would replace; choose another"
        )
    check_bundle_folder(folder / BUNDLE)
