# SPDX-License-Identifier: Apache-2.0
"""The messages of an MCAP file read record by record, as far as the records are whole."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

from sparserefine_ros.bags.library import rosbags_module

_MAGIC: Final = b"\x89MCAP0\r\n"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = 0x03, 0x04, 0x05, 0x06
# Where the data end: footer, end of data, and the zeros of a file that was never filled.
_ENDS: Final = (0x02, 0x0F, 0x00)

# Topic, type, time of recording in nanoseconds, data serialised in CDR.
Message = tuple[str, str, int, memoryview]


def mcap_messages(file: BinaryIO, size: int) -> Iterator[Message]:
    """The messages up to the first record that is not whole, in the order of the file.

    A chunk that cannot be decompressed is left out.

    Args:
        file: at its beginning.
        size: its length in bytes.
    """
    if file.read(len(_MAGIC)) == _MAGIC:
        # Records shorter than their kind needs are damage as well.
        with contextlib.suppress(struct.error):
            yield from _messages(file, size)


def _messages(file: BinaryIO, size: int) -> Iterator[Message]:
    schemas: dict[int, str] = {}
    channels: dict[int, tuple[str, str]] = {}
    for kind, record in _flat_records(file, size):
        if kind == _SCHEMA:
            schemas[_unpack("<H", record)] = _text(record, 2)
        elif kind == _CHANNEL:
            schema = schemas.get(_unpack("<H", record, 2), "")
            channels[_unpack("<H", record)] = (_text(record, 4), schema)
        elif kind == _MESSAGE:
            channel, _, log_ns, _ = struct.unpack_from("<HIQQ", record)
            topic, schema = channels.get(channel, ("", ""))
            if schema:
                yield topic, schema, log_ns, record[22:]


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
        raw = b""
        with contextlib.suppress(Exception):  # of many kinds, on broken bytes
            raw_size, crc, name = struct.unpack_from("<QII", record, 16)
            content = record[32 + name + 8 :]
            raw = decompress(bytes(content), _text(record, 28), raw_size, crc)
        yield from _records(memoryview(raw))


def _records(raw: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Kind and content of the whole records of a chunk."""
    at = 0
    while at + 9 <= len(raw):
        kind, length = struct.unpack_from("<BQ", raw, at)
        if kind in _ENDS or at + 9 + length > len(raw):
            return
        yield kind, raw[at + 9 : at + 9 + length]
        at += 9 + length


def _unpack(form: str, record: memoryview, at: int = 0) -> int:
    return int(struct.unpack_from(form, record, at)[0])


def _text(record: memoryview, at: int) -> str:
    content: bytes = struct.unpack_from(f"{_unpack('<I', record, at)}s", record, at + 4)[0]
    return content.decode(errors="replace")
