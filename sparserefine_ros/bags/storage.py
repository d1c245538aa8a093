# SPDX-License-Identifier: Apache-2.0
"""One storage file of a bag, SQLite or MCAP: by the library, or record by record when damaged."""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from sparserefine_ros.bags.library import rosbags_module
from sparserefine_ros.errors import BagError

MCAP_MAGIC: Final = b"\x89MCAP0\r\n"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = 0x03, 0x04, 0x05, 0x06
# Where the data of a whole file end: footer and end of data.
_ENDS: Final = (0x02, 0x0F)


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


def open_storage(path: Path) -> Storage:
    """Open a `.mcap` or `.db3` file; a damaged one is read as far as its records are whole.

    Raises:
        BackendError: the library is not installed.
        BagError: the file cannot be opened, or nothing in it is whole.
    """
    if path.suffix not in _SCANNED:
        raise BagError(f"expected a storage file .mcap or .db3, got {path}")
    reader = rosbags_module("rosbags.rosbag2").Reader
    try:
        return LibraryStorage(reader(path))
    except PermissionError as err:
        raise BagError(f"cannot read {path}: {err.strerror}; check the file") from err
    except Exception as err:  # of many kinds, on broken bytes
        damage = (
            f"{path.name} is cut off or damaged, only what is whole was read ({_one_line(err)})"
        )
        whole = _SCANNED[path.suffix](path, damage)
        if not whole.counts:
            whole.close()
            raise BagError(
                f"expected a bag file, got {path}: {_one_line(err)}, and no message in it is "
                "whole; record it anew or copy it again"
            ) from err
        return whole


class LibraryStorage:
    """A file that the library can open."""

    def __init__(self, reader: Any) -> None:
        reader.open()
        self._reader = reader
        # Topics are found by name and type alone: the library also compares the QoS with that of
        # metadata.yaml, and gives no message at all where they differ.
        self._connections = list(reader.connections)
        self.types: dict[str, str] = {each.topic: each.msgtype for each in self._connections}
        self.counts: dict[str, int] = {}
        for each in self._connections:
            self.counts[each.topic] = self.counts.get(each.topic, 0) + each.msgcount
        self.damage = ""

    def messages(self, topics: Collection[str]) -> Iterator[Recorded]:
        """The messages of some topics by the time of their recording."""
        wanted = [each for each in self._connections if each.topic in topics]
        if not wanted:
            return
        source = self._reader.messages(wanted)
        while True:
            try:
                connection, log_ns, data = next(source)
            except StopIteration:
                return
            except Exception as err:  # of many kinds, on broken bytes
                self.damage = (
                    f"{self._reader.path.name}: reading ended at damage ({_one_line(err)})"
                )
                return
            yield Recorded(connection.topic, connection.msgtype, log_ns, data)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


class ScannedMcap:
    """An MCAP file without a usable end, such as one whose recorder was killed.

    Its records are read one by one up to the first that is not whole; a chunk that cannot be
    decompressed is left out.
    """

    def __init__(self, path: Path, damage: str) -> None:
        self._path = path
        self.damage = damage
        self.types: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        for message in self.messages(None):
            self.types[message.topic] = message.type
            self.counts[message.topic] = self.counts.get(message.topic, 0) + 1

    def messages(self, topics: Collection[str] | None) -> Iterator[Recorded]:
        """The messages of some topics, or all, in the order of the file."""
        schemas: dict[int, str] = {}
        channels: dict[int, tuple[str, str]] = {}
        with self._path.open("rb") as file:
            if file.read(len(MCAP_MAGIC)) != MCAP_MAGIC:
                return
            for kind, record in _flat_records(file, self._path.stat().st_size):
                if kind == _SCHEMA:
                    schemas[_unpack("<H", record)] = _text(record, 2)
                elif kind == _CHANNEL:
                    schema = schemas.get(_unpack("<H", record, 2), "")
                    channels[_unpack("<H", record)] = (_text(record, 4), schema)
                elif kind == _MESSAGE:
                    topic, schema = channels.get(_unpack("<H", record), ("", ""))
                    if schema and (topics is None or topic in topics):
                        yield Recorded(topic, schema, _unpack("<Q", record, 6), record[22:])

    def close(self) -> None:
        """Nothing is open."""


class ScannedSqlite:
    """An SQLite file that is cut off: its rows are read in the order they were written."""

    def __init__(self, path: Path, damage: str) -> None:
        self.damage = damage
        self.types: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        # Opened in one thread and read in another, but never in two at a time.
        self._file = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
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


_SCANNED: Final[dict[str, Callable[[Path, str], Storage]]] = {
    ".mcap": ScannedMcap,
    ".db3": ScannedSqlite,
}


def _flat_records(file: BinaryIO, size: int) -> Iterator[tuple[int, memoryview]]:
    """Kind and content of the whole records of a file and of its chunks."""
    decompress = rosbags_module("rosbags.rosbag2.storage_mcap").decompress
    while len(head := file.read(9)) == 9:
        kind, length = struct.unpack("<BQ", head)
        if kind in _ENDS or file.tell() + length > size:
            return
        record = memoryview(file.read(length))
        if kind != _CHUNK:
            yield kind, record
            continue
        with contextlib.suppress(Exception):  # of many kinds, on broken bytes
            raw_size, crc, name = struct.unpack_from("<QII", record, 16)
            content = record[32 + name + 8 :]
            compression = _text(record, 28)
            raw = memoryview(decompress(bytes(content), compression, raw_size, crc))
            yield from list(_records(raw))


def _records(raw: memoryview) -> Iterator[tuple[int, memoryview]]:
    at = 0
    while at + 9 <= len(raw):
        kind, length = struct.unpack_from("<BQ", raw, at)
        yield kind, raw[at + 9 : at + 9 + length]
        at += 9 + length


def _unpack(form: str, record: memoryview, at: int = 0) -> int:
    return int(struct.unpack_from(form, record, at)[0])


def _text(record: memoryview, at: int) -> str:
    length = _unpack("<I", record, at)
    return bytes(record[at + 4 : at + 4 + length]).decode(errors="replace")


def _one_line(err: Exception) -> str:
    return (" ".join(str(err).split()).rstrip(".") or type(err).__name__)[:200]
