# SPDX-License-Identifier: Apache-2.0
"""Pictures and maps as a bag that `ros2 bag play`, RViz and Foxglove open.

Shape legend: H, W picture.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from sparserefine_ros.bags.frames import Header
from sparserefine_ros.bags.library import COMPRESSED_IMAGE, IMAGE, rosbags_module, typestore
from sparserefine_ros.bags.reader import METADATA
from sparserefine_ros.bags.staging import whole_folder
from sparserefine_ros.configuration import load_yaml
from sparserefine_ros.errors import BagError, ConfigurationError

STORAGES: Final = ("mcap", "sqlite3")
COMPRESSIONS: Final = ("none", "zstd")
JPEG_QUALITY: Final = 90
_WRITER: Final = "rosbags"  # as metadata.yaml names the library
_VERSION: Final = 9  # of the format: that of ROS 2 Jazzy and later
_DTYPES: Final = {"mono8": np.uint8, "rgb8": np.uint8, "bgr8": np.uint8, "32FC1": np.float32}
_CODECS: Final = {"jpeg": (".jpg", (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)), "png": (".png", ())}


@contextlib.contextmanager
def write_bag(
    folder: Path, *, storage: str = "mcap", compression: str = "none"
) -> Iterator[BagWriter]:
    """Open a bag for writing; it appears under its name when the block ends well.

    Args:
        folder: of the bag; an earlier one there that was written so is replaced.
        storage: one of STORAGES.
        compression: "zstd" compresses the chunks of MCAP, or each message of SQLite.

    Raises:
        BackendError: the library rosbags is not installed.
        BagError: the folder holds something else or cannot be written.
        ConfigurationError: unknown storage or compression.
    """
    for given, known in ((storage, STORAGES), (compression, COMPRESSIONS)):
        if given not in known:
            raise ConfigurationError(f"expected one of {', '.join(known)}, got {given!r}")
    with whole_folder(folder, obstacle=no_written_bag) as new:
        new.rmdir()  # the library wants to make it
        with open_writer(new, storage=storage, compression=compression) as writer:
            yield writer


def no_written_bag(folder: Path) -> str:
    """What keeps a folder from being a bag that `write_bag` wrote, in words; empty where it is one.

    Recordings are none: they cannot be made again.
    """
    try:
        content = load_yaml((folder / METADATA).read_text(encoding="utf-8"), yaml.SafeLoader)
        about = content["rosbag2_bagfile_information"]
        own = {METADATA, *about["relative_file_paths"]}
        writer = about["ros_distro"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"there is no {METADATA} of a bag written by {_WRITER}"
    if writer != _WRITER:
        return f"its bag is a recording of {writer}"
    others = [path for path in folder.iterdir() if path.name not in own or not path.is_file()]
    return f"it also holds {min(others).name}" if others else ""


@contextlib.contextmanager
def open_writer(folder: Path, *, storage: str, compression: str) -> Iterator[BagWriter]:
    """Open a bag in a folder that does not exist, within one that is put in place later."""
    rosbag2 = rosbags_module("rosbags.rosbag2")
    mcap = storage == "mcap"
    plugin = rosbag2.StoragePlugin.MCAP if mcap else rosbag2.StoragePlugin.SQLITE3
    writer = rosbag2.Writer(folder, version=_VERSION, storage_plugin=plugin)
    if compression == "zstd":
        modes = rosbag2.CompressionMode
        mode = modes.STORAGE if mcap else modes.MESSAGE
        writer.set_compression(mode, rosbag2.CompressionFormat.ZSTD)
    try:
        with writer:
            yield BagWriter(writer)
    except rosbag2.WriterError as err:
        raise BagError(f"cannot write the bag {folder}: {err}") from err


class BagWriter:
    """Writes image messages; topics are added when they first come."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._connections: dict[tuple[str, str], Any] = {}

    def write_image(
        self, topic: str, header: Header, log_ns: int, pixels: NDArray[Any], encoding: str
    ) -> None:
        """Write a sensor_msgs/Image.

        Args:
            topic: where.
            header: of the message.
            log_ns: when it was recorded, nanoseconds.
            pixels: uint8 [H, W] for mono8, uint8 [H, W, 3] for rgb8 and bgr8, float32 [H, W] for
                32FC1.
            encoding: one of these.
        """
        pixels = np.ascontiguousarray(pixels, _DTYPES[encoding])
        height, width = pixels.shape[:2]
        fields = {
            "height": height,
            "width": width,
            "encoding": encoding,
            "is_bigendian": int(sys.byteorder == "big"),
            "step": pixels.strides[0],
            "data": pixels.reshape(-1).view(np.uint8),
        }
        self._write(topic, IMAGE, header, log_ns, fields)

    def write_compressed(
        self, topic: str, header: Header, log_ns: int, pixels: NDArray[np.uint8], codec: str
    ) -> None:
        """Write a sensor_msgs/CompressedImage as image_transport does.

        Args:
            topic: where; image_transport ends its name with /compressed.
            header: of the message.
            log_ns: when it was recorded, nanoseconds.
            pixels: uint8 [H, W, 3] RGB, or uint8 [H, W].
            codec: "jpeg", or the lossless "png".
        """
        colour = pixels.ndim == 3
        stored = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if colour else pixels
        suffix, settings = _CODECS[codec]
        _, data = cv2.imencode(suffix, stored, settings)
        kind = f"rgb8; {codec} compressed bgr8" if colour else f"mono8; {codec} compressed "
        self._write(topic, COMPRESSED_IMAGE, header, log_ns, {"format": kind, "data": data})

    def _write(
        self, topic: str, kind: str, header: Header, log_ns: int, fields: dict[str, Any]
    ) -> None:
        store = typestore()
        stamp = store.types["builtin_interfaces/msg/Time"](
            sec=header.stamp_ns // 10**9, nanosec=header.stamp_ns % 10**9
        )
        head = store.types["std_msgs/msg/Header"](stamp=stamp, frame_id=header.frame_id)
        message = store.types[kind](header=head, **fields)
        connection = self._connections.get((topic, kind))
        if connection is None:
            connection = self._writer.add_connection(topic, kind, typestore=store)
            self._connections[topic, kind] = connection
        try:
            self._writer.write(connection, log_ns, store.serialize_cdr(message, kind))
        except OSError as err:
            raise BagError(
                f"cannot write the bag: {err.strerror}; make room on the disk and start again"
            ) from err
