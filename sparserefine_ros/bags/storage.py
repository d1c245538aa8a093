# SPDX-License-Identifier: Apache-2.0
"""One storage file of a bag, SQLite or MCAP: by the library, or record by record when damaged."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from sparserefine_ros.bags.library import rosbags_module
from sparserefine_ros.bags.mcap import mcap_messages
from sparserefine_ros.errors import BagError


@dataclass(frozen=True)
class Recorded:
    """A message as it was recorded.

    Attributes:
        topic: its topic.
        type: such as sensor_msgs/msg/Image.
        log_ns: when it was recorded, nanoseconds since 1970.
        data: serialised in CDR.
    """

    topic: str
    type: str
    log_ns: int
    data: bytes | memoryview


class Storage(Protocol):
    """An open storage file.

    Attributes:
        types: type of each topic.
        counts: messages of each topic.
        damage: what could not be read, in words; empty so far when nothing.
    """

    types: dict[str, str]
    counts: dict[str, int]
    damage: str

    def messages(self, topics: Collection[str]) -> Iterator[Recorded]:
        """The messages of some topics in order; reading ends at the first damage."""

    def close(self) -> None:
        """Close the file."""


def open_storage(path: Path, *, original: Path | None = None) -> Storage:
    """Open a `.mcap` or `.db3` file; a damaged one is read as far as its records are whole.

    Args:
        path: the file.
        original: the file that texts name, where `path` is a copy of it.

    Raises:
        BackendError: the library is not installed.
        BagError: the file cannot be opened, or nothing in it is whole.
    """
    file = _File(path, original or path)
    if path.suffix not in _SCANNED:
        raise BagError(f"expected a storage file .mcap or .db3, got {file.original}")
    rosbags_module("rosbags.rosbag2")  # that it is missing is no damage
    try:
        return LibraryStorage(file)
    except PermissionError as err:
        raise file.unreadable(err) from err
    except Exception as err:  # of many kinds, on broken bytes
        what = file.in_words(err)
        whole = _SCANNED[path.suffix](
            file,
            f"{file.original.name} is cut off or damaged, only what is whole was read ({what})",
        )
        if not whole.counts:
            whole.close()
            raise BagError(
                f"expected a bag file, got {file.original}: {what}, and no message in it is "
                "whole; record it anew or copy it again"
            ) from err
        return whole


@dataclass(frozen=True)
class _File:
    """A file to read.

    Attributes:
        path: where it is.
        original: what texts name.
    """

    path: Path
    original: Path

    def in_words(self, err: Exception) -> str:
        """What went wrong, in one line."""
        text = str(err).replace(str(self.path), str(self.original))
        return (" ".join(text.split()).rstrip(".") or type(err).__name__)[:200]

    def unreadable(self, err: Exception) -> BagError:
        """For what no damage explains, such as missing rights or too many open files."""
        reason = getattr(err, "strerror", None) or self.in_words(err)
        return BagError(f"cannot read {self.original}: {reason}; grant access or close other files")


class LibraryStorage:
    """A file that the library can open."""

    def __init__(self, file: _File) -> None:
        self._file = file
        self._reader = self._open()
        # Topics are found by name and type alone: the library also compares the QoS with that of
        # metadata.yaml, and gives no message at all where they differ.
        connections = list(self._reader.connections)
        self.types: dict[str, str] = {each.topic: each.msgtype for each in connections}
        self.counts: dict[str, int] = {}
        for each in connections:
            self.counts[each.topic] = self.counts.get(each.topic, 0) + each.msgcount
        self.damage = ""

    def messages(self, topics: Collection[str]) -> Iterator[Recorded]:
        """The messages of some topics by the time of their recording."""
        with contextlib.ExitStack() as closing:
            source = self._messages(topics, closing)
            while True:
                try:
                    connection, log_ns, data = next(source)
                except StopIteration:
                    return
                except Exception as err:  # of many kinds, on broken bytes
                    self.damage = (
                        f"{self._file.original.name}: reading ended at damage "
                        f"({self._file.in_words(err)})"
                    )
                    return
                yield Recorded(connection.topic, connection.msgtype, log_ns, data)

    def _messages(
        self, topics: Collection[str], closing: contextlib.ExitStack
    ) -> Iterator[tuple[Any, int, bytes]]:
        """As the library gives them; what is opened here is closed by `closing`."""
        if not any(topic in topics for topic in self.types):
            return
        reader = self._reader
        if self._file.path.suffix == ".mcap":
            # A reader of MCAP without an index has one place in the file for all who read.
            reader = self._open()
            closing.callback(reader.close)
        wanted = [each for each in reader.connections if each.topic in topics]
        if wanted:
            yield from reader.messages(wanted)

    def _open(self) -> Any:
        reader = rosbags_module("rosbags.rosbag2").Reader(self._file.path)
        reader.open()
        return reader

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


class ScannedMcap:
    """An MCAP file without a usable end, such as one whose recorder was killed.

    Its records are read one by one up to the first that is not whole; a chunk that cannot be
    decompressed is left out.
    """

    def __init__(self, file: _File, damage: str) -> None:
        self._file = file
        self.damage = damage
        self.types: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        for message in self.messages(None):
            self.types[message.topic] = message.type
            self.counts[message.topic] = self.counts.get(message.topic, 0) + 1

    def messages(self, topics: Collection[str] | None) -> Iterator[Recorded]:
        """The messages of some topics, or all, in the order of the file.

        Raises:
            BagError: the file cannot be read at all.
        """
        try:
            with self._file.path.open("rb") as file:
                for message in mcap_messages(file, self._file.path.stat().st_size):
                    if topics is None or message[0] in topics:
                        yield Recorded(*message)
        except OSError as err:
            raise self._file.unreadable(err) from err

    def close(self) -> None:
        """Nothing is open."""


class ScannedSqlite:
    """An SQLite file that is cut off: its rows are read in the order they were written."""

    def __init__(self, file: _File, damage: str) -> None:
        self.damage = damage
        self.types: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        uri = f"{file.path.absolute().as_uri()}?mode=ro&immutable=1"
        try:
            # Opened in one thread and read in another, but never in two at a time.
            self._file = sqlite3.connect(uri, uri=True, check_same_thread=False)
        except sqlite3.OperationalError as err:
            raise file.unreadable(err) from err
        with _up_to_the_cut():
            # Otherwise a file shorter than its header says is refused as a whole.
            self._file.execute("PRAGMA writable_schema = ON")
            self._topics = {
                number: (name, kind)
                for number, name, kind in self._file.execute("SELECT id, name, type FROM topics")
            }
            self.types = dict(self._topics.values())
        if self.types:
            for message in self.messages(self.types):
                self.counts[message.topic] = self.counts.get(message.topic, 0) + 1

    def messages(self, topics: Collection[str]) -> Iterator[Recorded]:
        """The messages of some topics in the order they were written."""
        query = "SELECT topic_id, timestamp, data FROM messages NOT INDEXED"
        with _up_to_the_cut():
            for number, log_ns, data in self._file.execute(query):
                topic, kind = self._topics.get(number, ("", ""))
                if topic in topics:
                    yield Recorded(topic, kind, log_ns, data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextlib.contextmanager
def _up_to_the_cut() -> Iterator[None]:
    """Let reading end where the file does; mistakes of our own are raised."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.DatabaseError:
        pass


_SCANNED: Final[dict[str, Callable[[_File, str], Storage]]] = {
    ".mcap": ScannedMcap,
    ".db3": ScannedSqlite,
}
