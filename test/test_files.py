# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from sparserefine_ros.errors import ConfigurationError, SparseRefineError
from sparserefine_ros.files import (
    expanded,
    prepare_file,
    prepare_folder,
    whole_file,
    write_text_whole,
    write_whole,
)


def test_a_home_that_nobody_has_stays_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/bag") == Path("/home/me/bag")
    assert expanded(Path("~nobody-here/bag")) == Path("~nobody-here/bag")


@pytest.mark.parametrize("name", ["scores.json", "scores.tmp", "no_suffix", "part.1"])
def test_every_name_is_written(tmp_path: Path, name: str) -> None:
    beside = tmp_path / "scores.tmp"
    beside.write_text("mine")
    write_text_whole(tmp_path / "new" / name, "1")
    assert (tmp_path / "new" / name).read_text() == "1"
    write_whole(tmp_path / name, b"2")
    assert (tmp_path / name).read_bytes() == b"2"
    assert {path.name for path in tmp_path.iterdir()} == {"new", "scores.tmp", name}
    assert beside.read_text() == ("2" if name == beside.name else "mine")


def test_devices_and_pipes_are_no_place(tmp_path: Path) -> None:
    """They would be replaced by a file, and who reads a pipe would wait forever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for write in (
        lambda: write_whole(pipe, b"1"),
        lambda: prepare_file(pipe),
        lambda: whole_file(pipe).__enter__(),
        lambda: prepare_file(Path("/dev/null")),
    ):
        with pytest.raises(ConfigurationError, match="is a device or a pipe; name another"):
            write()
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", [300 * "x", "a\0b", "loop", "file/below"])
def test_what_no_file_can_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    path = tmp_path / name
    for write in (
        lambda: write_whole(path, b"1"),
        lambda: prepare_file(path),
        lambda: whole_file(path).__enter__(),
    ):
        with pytest.raises(SparseRefineError, match=r"cannot write|can be written to"):
            write()


def test_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "file.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    write_text_whole(link, "new")
    with whole_file(link) as aside:
        aside.write_text("newer")
    assert link.is_symlink()
    assert target.read_text() == "newer"


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("earlier")
    (tmp_path / ".scores.json.partial").symlink_to("/dev/full")
    with pytest.raises(SparseRefineError, match=r"cannot write .*scores\.json: No space left"):
        write_text_whole(path, "new")
    assert [each.name for each in tmp_path.iterdir()] == ["scores.json"]
    assert path.read_text() == "earlier"


def test_a_block_that_fails_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_text("earlier")

    def write_and_fail() -> None:
        with whole_file(path) as aside:
            aside.write_text("half")
            raise KeyError("video")

    with pytest.raises(KeyError, match="video"):
        write_and_fail()
    assert [each.name for each in tmp_path.iterdir()] == ["video.mp4"]
    assert path.read_text() == "earlier"


def test_a_folder_where_a_file_should_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"expected a file to write, .* is a folder"):
        prepare_file(tmp_path)


def test_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"folder that can be written to.*choose another"):
        prepare_folder(tmp_path / "file" / "report")
