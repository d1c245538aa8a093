# SPDX-License-Identifier: Apache-2.0
"""Folders that appear under their name only when they are whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sparserefine_ros.errors import BagError

# (a folder) -> the first thing that keeps it from being an earlier result and nothing else, in
# words; empty where it is one.
Obstacle = Callable[[Path], str]


@contextmanager
def whole_folder(target: Path, *, obstacle: Obstacle) -> Iterator[Path]:
    """Yield a new folder, of the same name, that takes the place of `target` when the block ends.

    It lies in `.NAME.partial` beside the target until then. When the block fails it is removed and
    an earlier target stays; when the process is killed, the next run removes it.

    Args:
        target: the folder; an earlier result there is replaced.
        obstacle: tells an earlier result, all of which will be removed, from other folders.

    Raises:
        BagError: `target` holds something else, or the folder cannot be written.
    """
    target = target.absolute()
    if target.exists() and (found := _obstacle(target, obstacle)):
        raise BagError(
            "expected a new folder, or one with an earlier result and nothing else, got "
            f"{target}: {found}; choose another or remove it"
        )
    partial = target.with_name(f".{target.name}.partial")
    new = partial / target.name
    try:
        shutil.rmtree(partial, ignore_errors=True)
        new.mkdir(parents=True)
    except OSError as err:
        raise _cannot_write(target, err) from err
    try:
        yield new
        if target.exists():
            target.rename(partial / "earlier")
        new.rename(target)
    except OSError as err:
        raise _cannot_write(target, err) from err
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _obstacle(target: Path, obstacle: Obstacle) -> str:
    if not target.is_dir():
        return "it is a file"
    try:
        return obstacle(target) if any(target.iterdir()) else ""
    except OSError as err:
        raise _cannot_write(target, err) from err


def _cannot_write(target: Path, err: OSError) -> BagError:
    return BagError(
        f"cannot write {target}: {err.strerror}; make room or grant access, then try again"
    )
