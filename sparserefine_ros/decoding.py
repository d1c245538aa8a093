# SPDX-License-Identifier: Apache-2.0
"""Decode JPEG and PNG bytes, after checking their announced size and that nothing is cut off."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.errors import ImageError

_JPEG_START: Final = b"\xff\xd8\xff"
_JPEG_END: Final = b"\xff\xd9"
_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_STANDALONE_MARKERS: Final = frozenset({0x01, *range(0xD0, 0xD8)})
_FRAME_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def is_jpeg_or_png(data: bytes) -> bool:
    """Whether the first bytes are those of a JPEG or PNG file."""
    return data.startswith((_JPEG_START, _PNG_START))


def decode_picture(data: bytes, *, flags: int, max_pixels: int) -> NDArray[np.generic]:
    """Decode an encoded picture; of a JPEG or PNG the size is checked before memory is taken.

    Args:
        data: the bytes of an image file, in any format that OpenCV reads.
        flags: cv2.IMREAD_*; the channel order is OpenCV's, BGR.
        max_pixels: largest height * width accepted.

    Returns:
        uint8 or uint16 [H, W] or [H, W, channels], as `flags` ask for.

    Raises:
        ImageError: nothing there ("empty"), too many pixels ("too_large"), or broken ("decode").
    """
    if not data:
        raise ImageError("expected an encoded picture, got 0 bytes", reason="empty")
    if is_jpeg_or_png(data):
        size = _jpeg_size(data) if data.startswith(_JPEG_START) else _png_size(data)
        check_size(*size, max_pixels)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as err:
        raise _broken(f"OpenCV cannot decode it ({err.err})") from err
    if pixels is None:
        raise _broken(f"OpenCV cannot decode it; its first bytes are {data[:8].hex(' ')}")
    height, width = pixels.shape[:2]
    check_size(height, width, max_pixels)
    return pixels


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Check a picture's size before anything is allocated for it.

    Raises:
        ImageError: a side is zero ("empty") or height * width > max_pixels ("too_large").
    """
    if height == 0 or width == 0:
        raise ImageError(
            f"expected at least one pixel, got {width} x {height}; check the sender",
            reason="empty",
        )
    if height * width > max_pixels:
        raise ImageError(
            f"expected at most {max_pixels / 1e6:g} megapixels, got {width} x {height} = "
            f"{height * width / 1e6:.4g}; send smaller pictures or raise the limit",
            reason="too_large",
        )


def _png_size(data: bytes) -> tuple[int, int]:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise _broken("the PNG header is incomplete")
    at = len(_PNG_START)
    # The decoder would take as much memory as a chunk says it has.
    while at + 12 <= len(data) and data[at + 4 : at + 8] != b"IEND":
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    if at + 12 > len(data):
        raise _broken(f"the PNG is cut off or damaged: its {len(data)} bytes have no end mark")
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAME_MARKERS:
            # The decoder would fill the missing rows with grey and report success.
            if data.rfind(_JPEG_END) < at:
                raise _broken(f"the JPEG is cut off: no end mark in its {len(data)} bytes")
            height, width = data[at + 5 : at + 7], data[at + 7 : at + 9]
            return int.from_bytes(height, "big"), int.from_bytes(width, "big")
        if marker == 0xFF:
            at += 1
        elif marker in _STANDALONE_MARKERS:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise _broken("the JPEG header is incomplete or damaged")


def _broken(what: str) -> ImageError:
    return ImageError(
        f"expected an intact encoded picture: {what}; encode it anew", reason="decode"
    )
