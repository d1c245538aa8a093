# SPDX-License-Identifier: Apache-2.0
"""Label files: their pixels as stored, and the decoders that turn these into class ids.

Shape legend: H, W picture. Decoders take pixels as `read_label_file` gives them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.sample import Colour
from sparserefine_ros.decoding import decode_picture
from sparserefine_ros.errors import DatasetError, ImageError
from sparserefine_ros.image import MAX_PIXELS

# (pixels of a label file, its path for error texts) -> uint8 [H, W], class ids or 255.
LabelDecoder = Callable[[NDArray[Any], Path], NDArray[np.uint8]]

PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER: Final = 33
_DEPTH, _COLOUR_TYPE = 24, 25
_GREY, _PALETTE = 0, 3
_REFUSED: Final = -1


def read_picture(path: Path, *, oriented: bool) -> NDArray[np.uint8]:
    """Read a picture as uint8 [H, W, 3], RGB; `oriented` applies an EXIF orientation.

    Raises:
        DatasetError: the file cannot be read, is no picture or is cut off.
    """
    flags = cv2.IMREAD_COLOR | (0 if oriented else cv2.IMREAD_IGNORE_ORIENTATION)
    data = _read(path)
    try:
        bgr: NDArray[Any] = decode_picture(data, flags=flags, max_pixels=MAX_PIXELS)
    except ImageError as err:
        raise _broken(path, err) from err
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def read_label_file(path: Path) -> NDArray[Any]:
    """Read the pixels of a label file as they are stored.

    Returns:
        uint8 or uint16: [H, W] of a grey picture, [H, W] indices of a palette PNG, [H, W, 3] RGB
        of a colour picture, [H, W, 4] with transparency.

    Raises:
        DatasetError: the file cannot be read, is no picture or is cut off.
    """
    data = _read(path)
    try:
        return decode_labels(data)
    except ImageError as err:
        raise _broken(path, err) from err


def decode_labels(data: bytes) -> NDArray[Any]:
    """Pixels, as `read_label_file` gives them, of the bytes of a label file.

    Raises:
        ImageError: they are no picture, or it is cut off.
    """
    is_png = data.startswith(PNG_START) and len(data) > _PNG_HEADER
    if is_png and data[_COLOUR_TYPE] == _PALETTE:
        # OpenCV would replace the indices by their colours; grey values it leaves alone.
        data = _palette_to_grey(data)
    pixels = decode_picture(data, flags=cv2.IMREAD_UNCHANGED, max_pixels=MAX_PIXELS)
    if is_png and data[_COLOUR_TYPE] == _GREY and data[_DEPTH] < 8:
        # But for stretching those of fewer than 8 bits to 0 .. 255.
        return np.asarray(pixels // (255 // (2 ** data[_DEPTH] - 1)))
    return pixels[:, :, ::-1] if pixels.ndim == 3 and pixels.shape[2] == 3 else pixels


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise DatasetError(f"cannot read {path}: {err.strerror}; restore the file") from err


def _broken(path: Path, err: ImageError) -> DatasetError:
    return DatasetError(f"cannot decode {path}; restore the file ({err})")


def _palette_to_grey(png: bytes) -> bytes:
    """Declare the indices of a palette PNG to be grey values: rows are stored alike for both."""
    header = bytearray(png[12 : _PNG_HEADER - 4])
    header[_COLOUR_TYPE - 12] = _GREY
    parts = [png[:12], bytes(header), zlib.crc32(header).to_bytes(4, "big")]
    at = _PNG_HEADER
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        # The other chunks describe colours; libpng warns of these in a grey picture.
        if png[at + 4 : at + 8] in (b"IDAT", b"IEND"):
            parts.append(png[at:end])
        at = end
    return b"".join(parts)


class IndexLabels:
    """Decodes files that hold a number per pixel.

    Args:
        values: class id, or 255, for each number in the file.
        others: class id, or 255, for every other number; None to refuse these.
        advice: what to do about a refused number.
    """

    def __init__(
        self,
        values: Mapping[int, int],
        *,
        others: int | None = None,
        advice: str = "correct the file",
    ) -> None:
        self._known, self._advice = tuple(values), advice
        self._table = np.full(256, _REFUSED if others is None else others, np.int16)
        self._table[list(values)] = list(values.values())

    def __call__(self, pixels: NDArray[Any], path: Path) -> NDArray[np.uint8]:
        """Return uint8 [H, W] class ids or 255, of uint8 [H, W] numbers.

        Raises:
            DatasetError: the pixels are not 8-bit with one channel, or hold a refused number.
        """
        if pixels.ndim != 2 or pixels.dtype != np.uint8:
            raise DatasetError(
                f"{path}: expected labels uint8 [H, W], one class number per pixel, got "
                f"{pixels.dtype} {list(pixels.shape)}; re-export the file as 8-bit grey PNG"
            )
        labels: NDArray[np.int16] = self._table[pixels]
        wrong = labels == _REFUSED
        if wrong.any():
            raise DatasetError(
                f"{path}: expected label values {_ranges(self._known)}, got "
                f"{pixels[wrong][0]} {_first(wrong)}; {self._advice}"
            )
        return labels.astype(np.uint8)


class ColourLabels:
    """Decodes files that hold a colour per pixel.

    Args:
        values: class id, or 255, for each RGB colour.
        threshold: channels at or above it count as 255, others as 0; None to take them as they are.
        others: class id, or 255, for every other colour; None to refuse these.
    """

    def __init__(
        self,
        values: Mapping[Colour, int],
        *,
        threshold: int | None = None,
        others: int | None = None,
    ) -> None:
        codes = _code(np.array(list(values)))
        order = codes.argsort()
        self._codes = codes[order]
        self._labels = np.array(list(values.values()), np.uint8)[order]
        self._threshold = threshold
        self._others = others

    def __call__(self, pixels: NDArray[Any], path: Path) -> NDArray[np.uint8]:
        """Return uint8 [H, W] class ids or 255, of uint8 [H, W, 3] RGB.

        Raises:
            DatasetError: the pixels are not 8-bit RGB, or hold a refused colour.
        """
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise DatasetError(
                f"{path}: expected labels uint8 [H, W, 3], a class colour per pixel, got "
                f"{pixels.dtype} {list(pixels.shape)}; re-export the file as 8-bit RGB PNG"
            )
        if self._threshold is not None:
            pixels = np.where(pixels >= self._threshold, 255, 0)
        codes = _code(pixels)
        nearest = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        labels: NDArray[np.uint8] = self._labels[nearest]
        wrong = self._codes[nearest] != codes
        if self._others is not None:
            labels[wrong] = self._others
        elif wrong.any():
            red, green, blue = pixels[wrong][0]
            raise DatasetError(
                f"{path}: expected one of {len(self._codes)} class colours for each pixel, got RGB "
                f"{red}, {green}, {blue} {_first(wrong)}; correct the file"
            )
        return labels


def _code(rgb: NDArray[Any]) -> NDArray[np.int32]:
    """One number for each colour: int32 [...] of [..., 3]."""
    red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
    return np.asarray(red << 16 | green << 8 | blue, np.int32)


def _first(wrong: NDArray[np.bool_]) -> str:
    row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return f"at row {row}, column {column}"


def _ranges(values: Iterable[int]) -> str:
    """Text such as "0 .. 18, 255"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]} .. {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
