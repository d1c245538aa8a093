# SPDX-License-Identifier: Apache-2.0
"""Bags written by the library itself, message by message, with whatever is in them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")

from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_HUMBLE)
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
TEXT = "std_msgs/msg/String"
SENSOR_QOS = Qos(
    QosHistory.KEEP_LAST,
    5,
    QosReliability.BEST_EFFORT,
    QosDurability.VOLATILE,
    QosTime(0, 0),
    QosTime(0, 0),
    QosLiveliness.AUTOMATIC,
    QosTime(0, 0),
    False,
)


@dataclass(frozen=True)
class Entry:
    """One message; `fields` may be raw bytes instead."""

    topic: str
    kind: str
    log_ns: int
    fields: dict[str, Any] | bytes


def header(stamp_ns: int, frame_id: str = "front") -> Any:
    time = STORE.types["builtin_interfaces/msg/Time"](stamp_ns // 10**9, stamp_ns % 10**9)
    return STORE.types["std_msgs/msg/Header"](time, frame_id)


def raw(
    pixels: np.ndarray,
    encoding: str,
    stamp_ns: int,
    *,
    topic: str = "/image",
    log_ns: int | None = None,
    **changes: Any,
) -> Entry:
    """An Image of uint8 [H, W] or [H, W, channels]."""
    fields = {
        "header": header(stamp_ns),
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "encoding": encoding,
        "is_bigendian": 0,
        "step": pixels[0].nbytes,
        "data": np.ascontiguousarray(pixels).reshape(-1).view(np.uint8),
    }
    return Entry(topic, IMAGE, stamp_ns if log_ns is None else log_ns, {**fields, **changes})


def compressed(data: np.ndarray, form: str, stamp_ns: int, *, topic: str = "/image") -> Entry:
    """A CompressedImage of encoded bytes."""
    fields = {"header": header(stamp_ns), "format": form, "data": data}
    return Entry(topic, COMPRESSED, stamp_ns, fields)


def record(
    folder: Path,
    entries: Iterable[Entry],
    *,
    storage: str = "mcap",
    compression: CompressionMode = CompressionMode.NONE,
    qos: Sequence[Qos] = (),
) -> Path:
    plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
    writer = Writer(folder, version=9, storage_plugin=plugin)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    connections: dict[tuple[str, str], Any] = {}
    with writer:
        for entry in entries:
            key = (entry.topic, entry.kind)
            if key not in connections:
                connections[key] = writer.add_connection(
                    *key, typestore=STORE, offered_qos_profiles=qos
                )
            writer.write(connections[key], entry.log_ns, serialised(entry))
    return folder


def storage_file(folder: Path) -> Path:
    (found,) = [path for path in folder.iterdir() if path.suffix in (".mcap", ".db3", ".zstd")]
    return found


def record_unindexed(path: Path, entries: Iterable[Entry], *, whole: bool = True) -> Path:
    """An MCAP file by hand, without chunks and indexes; the end is left out of one not whole."""
    magic, out = b"\x89MCAP0\r\n", [mcap_record(0x01, text("ros2") + text("by hand"))]
    channels: dict[tuple[str, str], int] = {}
    for entry in entries:
        key = (entry.topic, entry.kind)
        if key not in channels:
            number = channels[key] = len(channels) + 1
            definition, _ = STORE.generate_msgdef(entry.kind, ros_version=2)
            schema = text(entry.kind) + text("ros2msg") + text(definition)
            out.append(mcap_record(0x03, struct.pack("<H", number) + schema))
            about = text(entry.topic) + text("cdr") + struct.pack("<I", 0)
            out.append(mcap_record(0x04, struct.pack("<HH", number, number) + about))
        head = struct.pack("<HIQQ", channels[key], 0, entry.log_ns, entry.log_ns)
        out.append(mcap_record(0x05, head + serialised(entry)))
    if whole:
        out += [mcap_record(0x0F, bytes(4)), mcap_record(0x02, bytes(20)), magic]
    path.write_bytes(b"".join([magic, *out]))
    return path


def mcap_record(kind: int, content: bytes) -> bytes:
    return struct.pack("<BQ", kind, len(content)) + content


def text(words: str) -> bytes:
    return struct.pack("<I", len(words)) + words.encode()


def serialised(entry: Entry) -> bytes:
    data = entry.fields
    if isinstance(data, bytes):
        return data
    return bytes(STORE.serialize_cdr(STORE.types[entry.kind](**data), entry.kind))
