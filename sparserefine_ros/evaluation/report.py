# SPDX-License-Identifier: Apache-2.0
"""The report folder: scores.json, scores.csv, report.html and the pictures it shows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.evaluation import Evaluation
from sparserefine_ros.evaluation.page import build_page, is_evaluation_page
from sparserefine_ros.evaluation.pictures import Gallery, draw_frames, foreign_pictures
from sparserefine_ros.evaluation.storage import write_csv, write_json
from sparserefine_ros.files import prepare_folder, write_text_whole

PAGE: Final = "report.html"
PICTURES: Final = "pictures"
SCORES: Final = "scores.json"
TABLE: Final = "scores.csv"


def prepare_report(folder: Path) -> None:
    """`prepare_folder`, and make sure that nothing but an earlier report will be replaced.

    Raises:
        ConfigurationError: it cannot be written to, or holds files of the same names.
    """
    prepare_folder(folder)
    if is_evaluation_page(folder / PAGE):
        taken = [f"{PICTURES}/{name}" for name in foreign_pictures(folder / PICTURES)]
    else:
        names = (PAGE, PICTURES, SCORES, TABLE)
        taken = [name for name in names if (folder / name).exists()]
    if taken:
        raise ConfigurationError(
            f"expected a folder for a report, got {folder}, where {taken[0]} is not of such a "
            "report; choose another folder"
        )


def write_report(evaluation: Evaluation, folder: Path, gallery: Gallery | None) -> Path:
    """Write the report; an earlier one in the folder is replaced, other files are left alone.

    Everything is written aside first, so that a failure leaves the earlier report.

    Args:
        evaluation: what is reported.
        folder: created when missing.
        gallery: what it takes to draw the worst frames; None for no pictures.

    Returns:
        the page.

    Raises:
        ConfigurationError: the folder cannot be written to, or holds pictures of another kind.
    """
    prepare_report(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".report-") as scratch:
        new = Path(scratch) / "new"
        (new / PICTURES).mkdir(parents=True)
        drawn = []
        if gallery is not None:
            worst = evaluation.worst_frames(gallery.count)
            drawn = draw_frames(gallery, worst, new / PICTURES)
        write_json(evaluation, new / SCORES)
        write_csv(evaluation, new / TABLE)
        write_text_whole(new / PAGE, build_page(evaluation, drawn, pictures=PICTURES))
        try:
            _put_in_place(new, folder, Path(scratch) / "old")
        except OSError as err:
            raise ConfigurationError(
                f"cannot replace the report in {folder}: {err.strerror}; choose another folder"
            ) from err
    return folder / PAGE


def _put_in_place(new: Path, folder: Path, old: Path) -> None:
    """Move the report to its folder, and the earlier pictures to `old`, or back on failure."""
    pictures = folder / PICTURES
    if pictures.exists():
        pictures.rename(old)
    try:
        (new / PICTURES).rename(pictures)
    except OSError:
        if old.exists():
            old.rename(pictures)
        raise
    for name in (SCORES, TABLE, PAGE):
        (new / name).replace(folder / name)
