# SPDX-License-Identifier: Apache-2.0
"""Bags written by the library itself, message by message, with whatever is in them."""

from __future__ import annotations

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
            data = entry.fields
            if not isinstance(data, bytes):
                data = bytes(STORE.serialize_cdr(STORE.types[entry.kind](**data), entry.kind))
            writer.write(connections[key], entry.log_ns, data)
    return folder


def storage_file(folder: Path) -> Path:
    (found,) = [path for path in folder.iterdir() if path.suffix in (".mcap", ".db3", ".zstd")]
    return found
