# SPDX-License-Identifier: Apache-2.0
"""The library `rosbags`, loaded when a bag is first touched."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

from sparserefine_ros.errors import BackendError

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore

IMAGE: Final = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE: Final = "sensor_msgs/msg/CompressedImage"
IMAGE_TYPES: Final = (IMAGE, COMPRESSED_IMAGE)


def rosbags_module(name: str) -> Any:
    """Import a module of the library, such as "rosbags.rosbag2".

    Raises:
        BackendError: the library is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise BackendError(
            f"expected the package rosbags to read and write bags ({err}); "
            "install it with pip install 'rosbags>=0.11.9'"
        ) from err


@functools.cache
def typestore() -> Typestore:
    """The message types; the image types are alike in all ROS 2 releases.

    Raises:
        BackendError: the library is not installed.
    """
    types = rosbags_module("rosbags.typesys")
    store: Typestore = types.get_typestore(types.Stores.LATEST)
    return store


def zstd() -> Any:
    """The Zstandard module that `rosbags` itself uses."""
    return rosbags_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
