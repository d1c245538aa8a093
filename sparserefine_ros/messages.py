# SPDX-License-Identifier: Apache-2.0
"""Image messages, from a node or from a bag, to RGB arrays; needs no ROS.

A message that contradicts itself is refused with an `ImageError` whose `reason` is one of REASONS.
Shape legend: H, W picture.
"""

from __future__ import annotations

import re
from typing import Any, Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.decoding import check_size, decode_picture, is_jpeg_or_png
from sparserefine_ros.encodings import ENCODINGS, Encoding, pixels_to_rgb
from sparserefine_ros.errors import ImageError

REASONS: Final = (
    "empty",  # a picture without pixels, or a compressed one without data
    "too_large",  # more pixels than allowed
    "encoding",  # unknown or unusable encoding or compression format
    "size",  # a size that the encoding cannot have
    "step",  # rows shorter than their pixels, or not a whole number of values long
    "data_size",  # not height * step bytes of data
    "decode",  # compressed data that is damaged, cut off or of another format
)


class ImageMessage(Protocol):
    """The fields of sensor_msgs/Image; `data` is any buffer of bytes."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: Any


class CompressedImageMessage(Protocol):
    """The fields of sensor_msgs/CompressedImage; `data` is any buffer of bytes."""

    format: str
    data: Any


def image_to_rgb(message: ImageMessage, *, max_pixels: int) -> NDArray[np.uint8]:
    """Convert an image message of any encoding in ENCODINGS.

    Args:
        message: with any row padding and either byte order.
        max_pixels: largest height * width accepted; checked before anything is allocated.

    Returns:
        uint8 [H, W, 3], RGB, C-contiguous. For rgb8 without row padding a view of the message's
        data, not a copy.

    Raises:
        ImageError: the message is malformed, see REASONS.
    """
    encoding = check_message(message, max_pixels)
    return pixels_to_rgb(image_to_pixels(message, encoding), encoding)


def compressed_to_rgb(message: CompressedImageMessage, *, max_pixels: int) -> NDArray[np.uint8]:
    """Convert a JPEG or PNG message as image_transport writes it.

    `format` is either just "jpeg" or "png", or "ENCODING; CODEC compressed STORED"; STORED tells
    the channel order in the file, ENCODING whether grey pixels are a Bayer mosaic. cv_bridge plays
    no part here: it takes every decoded picture for bgr8.

    Args:
        message: `format` as above, or empty.
        max_pixels: largest height * width accepted; checked before decoding.

    Returns:
        uint8 [H, W, 3], RGB, C-contiguous.

    Raises:
        ImageError: the message is malformed, see REASONS.
    """
    encoding, _, codec = message.format.lower().rpartition(";")
    if (codec and not re.search(r"jpe?g|png", codec)) or "compresseddepth" in codec:
        raise ImageError(
            f"expected a JPEG or PNG, got the format {_quote(message.format)}; use the "
            '"compressed" transport of image_transport',
            reason="encoding",
        )
    data = bytes(message.data)
    if data and not is_jpeg_or_png(data):
        raise ImageError(
            f"expected JPEG or PNG data, got bytes that start with {data[:8].hex(' ')} in the "
            f"format {_quote(message.format)}; check the sender",
            reason="decode",
        )
    pixels = decode_picture(data, flags=cv2.IMREAD_UNCHANGED, max_pixels=max_pixels)
    name = _decoded_encoding(pixels, encoding.strip(), stored_rgb="compressed rgb" in codec)
    return pixels_to_rgb(pixels, ENCODINGS[name])  # type: ignore[arg-type]


def check_message(message: ImageMessage, max_pixels: int) -> Encoding:
    """Find the encoding of a message whose fields and data agree.

    Raises:
        ImageError: the message is malformed, see REASONS.
    """
    height, width, step = message.height, message.width, message.step
    check_size(height, width, max_pixels)
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        raise ImageError(
            f"expected one of the encodings {', '.join(ENCODINGS)}, got "
            f"{_quote(message.encoding)}; convert the pictures before sending them",
            reason="encoding",
        )
    _check_sides(message, encoding)
    row_bytes = width * encoding.pixel_bytes
    if step < row_bytes or step % (encoding.bits // 8):
        raise ImageError(
            f"expected a step of at least {row_bytes} bytes for {width} pixels of "
            f"{message.encoding}{', and an even one' if encoding.bits == 16 else ''}, got {step}; "
            "step is the length of a row with its padding",
            reason="step",
        )
    expected = encoding.rows(height) * step
    # More data than announced is refused like less, as in cv_bridge's C++: one of the fields is
    # wrong, and with a wrong step every row would be sheared.
    if len(message.data) != expected:
        raise ImageError(
            f"expected {expected} bytes of data ({encoding.rows(height)} rows of {step}), got "
            f"{len(message.data)}; check the height, step and data of the sender",
            reason="data_size",
        )
    return encoding


def _check_sides(message: ImageMessage, encoding: Encoding) -> None:
    height, width = message.height, message.width
    odd_width = bool(encoding.even_sides) and width % 2
    odd_height = encoding.even_sides == "both" and height % 2
    if odd_width or odd_height or min(height, width) < encoding.smallest_side:
        even = {"": "", "width": "an even width", "both": "even sides"}[encoding.even_sides]
        raise ImageError(
            f"expected {even or f'sides of at least {encoding.smallest_side}'} for "
            f"{message.encoding}, got {width} x {height}; check the sender",
            reason="size",
        )


def image_to_pixels(
    message: ImageMessage, encoding: Encoding
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """View the data of a checked message as pixels; only a foreign byte order makes a copy."""
    item = encoding.bits // 8
    rows = encoding.rows(message.height)
    shape: tuple[int, ...] = (rows, message.width)
    strides: tuple[int, ...] = (message.step, encoding.pixel_bytes)
    if encoding.channels > 1:
        shape, strides = (*shape, encoding.channels), (*strides, item)
    order = ">" if message.is_bigendian else "<"
    dtype = np.dtype(f"{order}u{item}")
    pixels = np.ndarray(shape, dtype, buffer=message.data, strides=strides)
    return pixels.astype(dtype.newbyteorder("="), copy=False)


def _decoded_encoding(pixels: NDArray[np.generic], announced: str, *, stored_rgb: bool) -> str:
    """Name of the encoding of what OpenCV decoded."""
    bits = 8 * pixels.itemsize
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if channels == 1:
        bayer = announced.startswith("bayer_") and min(pixels.shape[:2]) >= 3
        name = f"{announced.rstrip('0123456789')}{bits}"
        return name if bayer and name in ENCODINGS else f"mono{bits}"
    # OpenCV decodes to BGR; a file with its channels stored in RGB order comes out as RGB.
    return f"{'rgb' if stored_rgb else 'bgr'}{'a' if channels == 4 else ''}{bits}"


def _quote(text: str, longest: int = 60) -> str:
    return repr(text if len(text) <= longest else f"{text[:longest]}...")
