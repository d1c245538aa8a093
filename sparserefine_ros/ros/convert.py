# SPDX-License-Identifier: Apache-2.0
"""Image messages to RGB arrays, by cv_bridge where it is right, and arrays to image messages.

Shape legend: H, W picture.
"""

from __future__ import annotations

import array
import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from sparserefine_ros.encodings import Encoding, pixels_to_rgb
from sparserefine_ros.messages import check_message, compressed_to_rgb, image_to_pixels
from sparserefine_ros.ros.bridge import bridge_to_rgb, cv_bridge_available

__all__ = ["array_to_image", "compressed_to_rgb", "image_to_rgb"]

_OUTPUT_TYPES: Final = {"mono8": (np.uint8, 1), "rgb8": (np.uint8, 3), "32FC1": (np.float32, 1)}


def image_to_rgb(message: Image, *, max_pixels: int) -> NDArray[np.uint8]:
    """Convert an image message of any encoding in ENCODINGS.

    Args:
        message: with any row padding and either byte order.
        max_pixels: largest height * width accepted; checked before anything is allocated.

    Returns:
        uint8 [H, W, 3], RGB, C-contiguous. For rgb8 without row padding a view of the message's
        data, not a copy.

    Raises:
        ImageError: the message is malformed, see `sparserefine_ros.messages.REASONS`.
    """
    encoding = check_message(message, max_pixels)
    if encoding.to_rgb is not None and _suits_cv_bridge(message, encoding):
        return bridge_to_rgb(message)
    return pixels_to_rgb(image_to_pixels(message, encoding), encoding)


def array_to_image(pixels: NDArray[Any], encoding: str, header: Header) -> Image:
    """Wrap an array in an image message.

    Args:
        pixels: uint8 [H, W] for mono8, uint8 [H, W, 3] for rgb8, float32 [H, W] for 32FC1.
        encoding: one of these.
        header: used as it is, not copied.

    Raises:
        ValueError: the array does not fit the encoding.
    """
    dtype, channels = _OUTPUT_TYPES[encoding]
    shape = pixels.shape if channels == 1 else pixels.shape[:-1]
    if pixels.dtype != dtype or len(shape) != 2 or (channels > 1 and pixels.shape[-1] != channels):
        raise ValueError(
            f"expected {np.dtype(dtype)} [H, W{f', {channels}' if channels > 1 else ''}] for "
            f"{encoding}, got {pixels.dtype} {list(pixels.shape)}"
        )
    # Assigning an array of bytes takes 0.5 ms for 6 MB; any other sequence is checked one by one.
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(pixels).view(np.uint8).data)
    height, width = shape
    return Image(
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=sys.byteorder == "big",
        step=width * channels * pixels.itemsize,
        data=data,
    )


def _suits_cv_bridge(message: Image, encoding: Encoding) -> bool:
    """Whether cv_bridge is there and reads this layout right.

    It misreads rows whose step is no multiple of the pixel, and fails with NumPy 2 when bytes
    have to be swapped.
    """
    native = encoding.bits == 8 or bool(message.is_bigendian) == (sys.byteorder == "big")
    whole_pixels = message.step % encoding.pixel_bytes == 0
    return encoding.known_to_cv_bridge and native and whole_pixels and cv_bridge_available()
