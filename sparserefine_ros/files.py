# SPDX-License-Identifier: Apache-2.0
"""Paths as users write them, files written whole or not at all, places checked before work."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sparserefine_ros.errors import ConfigurationError, SparseRefineError


def expanded(path: str | Path) -> Path:
    """The path with the home folder for `~`; as it is where there is no such home."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of Path raises RuntimeError


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write aside, then rename: a kill or a full disk leaves the earlier file whole.

    Raises:
        SparseRefineError: the file cannot be written.
    """
    path = _target(path)
    aside = _aside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as err:
        raise _cannot_write(path, err) from err
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a file aside to write to, which takes the place of `path` when the block ends.

    When the block fails it is removed, and an earlier file stays.

    Raises:
        SparseRefineError: the file cannot be written.
    """
    path = _target(path)
    aside = _aside(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            aside.touch()
        except OSError as err:
            raise _cannot_write(path, err) from err
        yield aside
        try:
            aside.replace(path)
        except OSError as err:
            raise _cannot_write(path, err) from err
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def write_text_whole(path: Path, text: str) -> None:
    """`write_whole` of UTF-8 text."""
    write_whole(path, text.encode())


def _target(path: Path) -> Path:
    """Where a symbolic link leads; a device or a pipe would be replaced by a file."""
    try:
        real = path.resolve()
        special = real.exists() and not (real.is_file() or real.is_dir())
    except OSError as err:
        raise _cannot_write(path, err) from err
    except (RuntimeError, ValueError) as err:  # links that lead to themselves, a NUL in the name
        raise ConfigurationError(f"cannot write {path}: {err}; name another file") from err
    if special:
        raise ConfigurationError(
            f"expected a plain file to write, {path} is a device or a pipe; name another file"
        )
    return real


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _cannot_write(path: Path, err: OSError) -> SparseRefineError:
    return SparseRefineError(
        f"cannot write {path}: {err.strerror}; make room or grant access, then try again"
    )


def prepare_folder(folder: Path) -> None:
    """Create a folder and make sure that it can be written to, before any long work.

    Raises:
        ConfigurationError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as err:
        raise ConfigurationError(
            f"expected a folder that can be written to, got {folder}: {err.strerror}; "
            "choose another folder"
        ) from err


def prepare_file(path: Path) -> None:
    """Make the folder of a file that will be written, before the work that fills it.

    Raises:
        SparseRefineError: nothing can be written to the folder, or the name is of a folder, a
            device or a pipe, or of what no file can be.
    """
    path = _target(path)
    prepare_folder(path.parent)
    if path.is_dir():
        raise ConfigurationError(f"expected a file to write, {path} is a folder; name a file in it")
