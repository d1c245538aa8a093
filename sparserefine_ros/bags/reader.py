# SPDX-License-Identifier: Apache-2.0
"""A bag as one sequence of messages: a folder with metadata.yaml, or a storage file alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final

import yaml
from typing_extensions import Self

from sparserefine_ros.bags.library import zstd
from sparserefine_ros.bags.storage import Recorded, Storage, open_storage
from sparserefine_ros.configuration import load_yaml
from sparserefine_ros.errors import BagError
from sparserefine_ros.sources import natural_order

METADATA: Final = "metadata.yaml"
_SUFFIXES: Final = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd")
# The library takes the path of an SQLite file for part of a URI, where these mean something.
_URI_MARKS: Final = frozenset("#?%")
# Serialised messages start with 0.
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class _Plan:
    """Which files to read, and what metadata.yaml says of them.

    Attributes:
        files: in order.
        announced: messages of each topic; empty when unknown.
        damage: what is wrong with metadata.yaml, in words.
    """

    files: Sequence[Path]
    announced: Mapping[str, int]
    damage: str = ""


def is_bag(path: Path) -> bool:
    """Whether a path is meant as a bag: by its name, or by what its folder holds."""
    try:
        if not path.is_dir():
            return path.name.endswith(_SUFFIXES)
        return (path / METADATA).is_file() or any(
            each.name.endswith(_SUFFIXES) for each in path.iterdir()
        )
    except OSError:
        return False


class Bag:
    """An open bag; a context manager. It can be read any number of times, also interleaved.

    Args:
        path: folder of a bag, or one `.mcap` or `.db3` file.

    Attributes:
        path: as given.
        types: type of each topic.
        announced: messages of each topic, as metadata.yaml says, or as the files hold.

    Raises:
        BackendError: the library rosbags is not installed.
        BagError: no bag, or nothing in it can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._closing = ExitStack()
        plan = _plan(path)
        self._damage = [plan.damage] if plan.damage else []
        self._storages: list[Storage] = []
        try:
            self._open(plan.files)
        except BaseException:
            self._closing.close()
            raise
        self.types = {topic: kind for each in self._storages for topic, kind in each.types.items()}
        self.announced: dict[str, int] = dict(plan.announced)
        if not self.announced:
            for storage in self._storages:
                for topic, count in storage.counts.items():
                    self.announced[topic] = self.announced.get(topic, 0) + count

    def _open(self, files: Sequence[Path]) -> None:
        failed: list[BagError] = []
        for file in files:
            try:
                storage = open_storage(self._plain(file), original=file)
            except BagError as err:
                failed.append(err)
                continue
            self._closing.callback(storage.close)
            self._storages.append(storage)
        if not self._storages:
            raise failed[0]
        # One broken part of a split recording leaves the others.
        self._damage += [str(err) for err in failed]

    def _plain(self, file: Path) -> Path:
        """The file itself, or a copy or link for the library, which lasts until the bag is closed.

        Raises:
            BagError: the file is missing, or cannot be decompressed.
        """
        if not file.is_file():
            raise BagError(f"expected a file {file}, which {METADATA} names; it is missing")
        kept = file.suffix != ".db3" or _URI_MARKS.isdisjoint(str(file.absolute()))
        if file.suffix != ".zstd" and kept:
            return file
        try:
            folder = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="bag-"))
            if file.suffix == ".zstd":
                return _decompress(file, Path(folder))
            link = Path(folder) / "bag.db3"
            link.symlink_to(file.absolute())
        except OSError as err:
            raise _unreadable(file, err) from err
        return link

    @property
    def damage(self) -> tuple[str, ...]:
        """What could not be read so far, in words."""
        return (*self._damage, *(each.damage for each in self._storages if each.damage))

    def messages(self, topics: Collection[str]) -> Iterator[Recorded]:
        """The messages of some topics: file by file, each in the order of recording."""
        for storage in self._storages:
            for message in storage.messages(topics):
                if message.data[:4] != _ZSTD_MAGIC:
                    yield message
                    continue
                try:
                    data = zstd().decompress(message.data)
                except zstd().ZstdError:
                    data = b""  # as an empty message it is counted among those that are broken
                yield Recorded(message.topic, message.type, message.log_ns, data)

    def describe_topics(self) -> str:
        """Each topic with its type and number of messages, for error texts."""
        return ", ".join(
            f"{topic} ({kind}, {self.announced.get(topic, 0)} messages)"
            for topic, kind in sorted(self.types.items())
        )

    def close(self) -> None:
        """Close all files."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _decompress(file: Path, folder: Path) -> Path:
    copy = folder / f"bag{file.with_suffix('').suffix}"
    try:
        with zstd().open(file, "rb") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (OSError, EOFError, ValueError, zstd().ZstdError) as err:
        what = str(err).replace(str(copy), str(file))
        raise BagError(
            f"cannot decompress {file} ({what}); copy the bag again, or record it anew"
        ) from err
    return copy


def _unreadable(path: Path, err: OSError) -> BagError:
    return BagError(
        f"cannot read {path}: {err.strerror}; grant access or make room, then try again"
    )


def _plan(path: Path) -> _Plan:
    try:
        if not path.exists():
            raise BagError(f"expected a bag, there is no file or folder {path}")
        if path.is_file():
            if not path.name.endswith(_SUFFIXES):
                raise BagError(
                    f"expected a bag (a folder, or a file {', '.join(_SUFFIXES)}), got {path}"
                )
            return _Plan([path], {})
        names = [each for each in path.iterdir() if each.name.endswith(_SUFFIXES)]
    except OSError as err:
        raise _unreadable(path, err) from err
    found = sorted(names, key=natural_order)
    try:
        return _plan_of_metadata(path)
    except BagError as err:
        if not found:
            raise
        # A recorder that was killed leaves none.
        return _Plan(found, {}, str(err))


def _plan_of_metadata(folder: Path) -> _Plan:
    path = folder / METADATA
    try:
        content = load_yaml(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        about = content["rosbag2_bagfile_information"]
        files = [folder / PurePosixPath(name).name for name in about["relative_file_paths"]]
        announced: dict[str, int] = {}
        for entry in about["topics_with_message_count"]:
            topic = entry["topic_metadata"]["name"]
            announced[topic] = announced.get(topic, 0) + int(entry["message_count"])
        if not files:
            raise ValueError("it names no files")
        return _Plan(files, announced)
    except OSError as err:
        raise BagError(
            f"expected a bag, found no {path} ({err.strerror}); name the folder that ros2 bag "
            "record wrote"
        ) from err
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as err:
        what = " ".join(str(err).split())[:200]
        raise BagError(f"{path} is damaged ({what}); rebuild it with ros2 bag reindex") from err
