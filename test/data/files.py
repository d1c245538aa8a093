# SPDX-License-Identifier: Apache-2.0
"""Writers of the small pictures and label files that the data set tests read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

RED = (250, 20, 30)


def write_png(path: Path, pixels: NDArray[np.generic]) -> None:
    """Grey [H, W] or RGB [H, W, 3], 8 or 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels if pixels.ndim == 2 else pixels[:, :, ::-1])


def write_picture(path: Path, size: tuple[int, int]) -> None:
    """A picture all in RED, (height, width); the suffix says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), RED[::-1], np.uint8))


def write_turned_jpeg(path: Path) -> None:
    """16 x 24 pixels, stored with a white upper half, with the EXIF note to turn it by 180 degrees.

    The note is an Exif segment with the one entry Orientation (tag 0x112) = 3.
    """
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:8] = 255
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    note = b"Exif\0\0" + struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x112, 3, 1, 3, 0, 0)
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note + jpeg[2:])


def write_palette_png(
    path: Path,
    indices: NDArray[np.uint8],
    *,
    depth: int = 8,
    transparent: bool = False,
    grey: bool = False,
) -> None:
    """Indices [H, W] below 2 ** depth as a palette PNG with random colours, or a grey one."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    height, width = indices.shape
    bits = np.unpackbits(indices[:, :, None], axis=2)[:, :, 8 - depth :].reshape(height, -1)
    rows = np.packbits(bits, axis=1)
    palette = np.random.default_rng(1).integers(0, 256, 3 * 2**depth).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0 if grey else 3, 0, 0, 0))
        + chunk(b"gAMA", struct.pack(">I", 45455))
        + (b"" if grey else chunk(b"PLTE", palette.tobytes()))
        + (chunk(b"tRNS", bytes(range(2))) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
        + chunk(b"IEND", b"")
    )
