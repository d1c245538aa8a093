# SPDX-License-Identifier: Apache-2.0
"""Storage files read by several at once, under odd names, and those that may not be read."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from bags.recording import record, record_unindexed, storage_file
from bags.test_reader import COUNT, entries, pictures, read

from sparserefine_ros.bags.library import zstd
from sparserefine_ros.bags.reader import Bag
from sparserefine_ros.errors import BagError


def test_a_file_without_an_index_gives_each_reader_its_own_place(tmp_path: Path) -> None:
    path = record_unindexed(tmp_path / "bag.mcap", entries(30, 40))
    with Bag(path) as bag:
        pairs = list(zip(bag.messages(["/image"]), bag.messages(["/image"]), strict=True))
        assert bag.damage == ()
    assert [first.log_ns for first, _ in pairs] == [(k + 1) * 10**8 for k in range(COUNT)]
    assert all(first == second for first, second in pairs)


@pytest.mark.parametrize("name", ["a#b", "what?", "50%25", "%"])
def test_names_that_mean_something_in_a_uri(tmp_path: Path, name: str) -> None:
    bag = record(tmp_path / "bag", entries(), storage="sqlite3").rename(tmp_path / name)
    file = storage_file(bag)
    for path in (bag, file):
        found, damage = read(path)
        assert damage == ()
        np.testing.assert_array_equal(found, pictures())
    cut(file, 0.6)
    _, (told,) = read(bag)
    assert told.startswith(f"{file.name} is cut off or damaged")
    assert "/bag-" not in told


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_damage_of_a_compressed_file_is_told_of_that_file(tmp_path: Path, storage: str) -> None:
    plain = storage_file(record(tmp_path / "bag", entries(), storage=storage))
    path = plain.with_name(f"{plain.name}.zstd")
    cut(plain, 0.6)
    path.write_bytes(zstd().compress(plain.read_bytes()))
    _, (told,) = read(path)
    assert told.startswith(f"{path.name} is cut off or damaged")
    assert "/bag-" not in told
    assert read(path)[1] == (told,)
    path.write_bytes(zstd().compress(b""))
    with pytest.raises(BagError, match=rf"expected a bag file, got {path}: .*whole") as error:
        Bag(path)
    assert "/bag-" not in str(error.value)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_file_that_may_not_be_read(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = storage_file(record(tmp_path / "bag", entries(30, 40), storage=storage))

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    def not_opened(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr("apsw.Connection", not_opened)
    monkeypatch.setattr("sqlite3.connect", not_opened)
    with pytest.raises(BagError, match=rf"cannot read {path}: (Permission|unable).*; grant"):
        Bag(path)


def test_a_damaged_file_that_can_no_longer_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record_unindexed(tmp_path / "bag.mcap", entries(30, 40), whole=False)

    def too_many(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with Bag(path) as bag:
        monkeypatch.setattr(Path, "open", too_many)
        with pytest.raises(BagError, match=r"cannot read .*: Too many open files; grant"):
            list(bag.messages(["/image"]))
