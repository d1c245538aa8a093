# SPDX-License-Identifier: Apache-2.0
"""The pixels of every encoding.

The oracles read the bytes of a message one value at a time, with integers, by the definition of the
encoding; they share no code with the package and do not use OpenCV.
"""

from __future__ import annotations

import array
import itertools
import struct

import numpy as np
import pytest
from ros.messages import MAX_PIXELS, make_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from sparserefine_ros.encodings import ENCODINGS
from sparserefine_ros.ros.convert import array_to_image, image_to_rgb

# Position of R, G, B within a pixel.
CHANNELS = {
    "mono": (1, (0, 0, 0)),
    "rgb": (3, (0, 1, 2)),
    "bgr": (3, (2, 1, 0)),
    "rgba": (4, (0, 1, 2)),
    "bgra": (4, (2, 1, 0)),
}
TYPES = {"UC1": "mono", "UC3": "bgr", "UC4": "bgra"}
INTERLEAVED = {
    **{f"{kind}{bits}": (kind, bits) for kind in CHANNELS for bits in (8, 16)},
    **{f"{bits}{name}": (kind, bits) for name, kind in TYPES.items() for bits in (8, 16)},
}
# Colours at even row even column, even/odd, odd/even, odd/odd.
BAYER = {
    f"bayer_{name}{bits}": (name, bits)
    for name in ("rggb", "bggr", "gbrg", "grbg")
    for bits in (8, 16)
}
# Position of U, Y0, V, Y1 in the four bytes of two pixels.
UYVY = {"yuv422": (0, 1, 2, 3), "uyvy": (0, 1, 2, 3)}
YUYV = {"yuv422_yuy2": (1, 0, 3, 2), "yuyv": (1, 0, 3, 2)}
PACKED_YUV = {**UYVY, **YUYV}


def value_at(message: Image, row: int, index: int, bits: int) -> int:
    """The value with this index in a row."""
    at = row * message.step + index * bits // 8
    order = "big" if message.is_bigendian else "little"
    return int.from_bytes(bytes(message.data[at : at + bits // 8]), order)


def to_8_bits(value: int, bits: int) -> int:
    """Nearest 8-bit value; v * 255 / 65535 = v / 257 is never half way."""
    return value if bits == 8 else (value + 128) // 257


def interleaved_oracle(message: Image) -> np.ndarray:
    kind, bits = INTERLEAVED[message.encoding]
    count, places = CHANNELS[kind]
    rgb = np.zeros((message.height, message.width, 3), np.uint8)
    for row, column, channel in itertools.product(*map(range, rgb.shape)):
        value = value_at(message, row, column * count + places[channel], bits)
        rgb[row, column, channel] = to_8_bits(value, bits)
    return rgb


@pytest.mark.parametrize("big_endian", [False, True], ids=["little", "big"])
@pytest.mark.parametrize("padding", [0, 2, 10])
@pytest.mark.parametrize("encoding", INTERLEAVED)
def test_interleaved_pixels(encoding: str, padding: int, big_endian: bool) -> None:
    kind, bits = INTERLEAVED[encoding]
    row_bytes = 7 * CHANNELS[kind][0] * bits // 8
    message = make_message(encoding, 5, 7, row_bytes, padding=padding, big_endian=big_endian)
    rgb = image_to_rgb(message, max_pixels=MAX_PIXELS)
    assert rgb.dtype == np.uint8
    assert rgb.flags.c_contiguous
    np.testing.assert_array_equal(rgb, interleaved_oracle(message))


@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
def test_16_bits_become_the_nearest_8_bits(encoding: str) -> None:
    values = range(65536)
    data = array.array("B", struct.pack("<65536H", *values))
    message = Image(encoding=encoding, height=256, width=256, step=512, data=data)
    rgb = image_to_rgb(message, max_pixels=MAX_PIXELS)
    assert rgb[..., 1].ravel().tolist() == [to_8_bits(value, 16) for value in values]


def bayer_oracle(message: Image) -> np.ndarray:
    """Bilinear: each missing colour is the mean of its nearest samples; interior only."""
    pattern, bits = BAYER[message.encoding]
    height, width = message.height, message.width
    rgb = np.zeros((height, width, 3), np.uint8)
    for row, column in itertools.product(range(1, height - 1), range(1, width - 1)):
        around = itertools.product((0, -1, 1), repeat=2)
        samples: dict[int, dict[int, list[int]]] = {0: {}, 1: {}, 2: {}}
        for down, right in around:
            y, x = row + down, column + right
            colour = "rgb".index(pattern[2 * (y % 2) + x % 2])
            distance = abs(down) + abs(right)
            samples[colour].setdefault(distance, []).append(value_at(message, y, x, bits))
        for colour, by_distance in samples.items():
            nearest = by_distance[min(by_distance)]
            mean = (sum(nearest) + len(nearest) // 2) // len(nearest)
            rgb[row, column, colour] = to_8_bits(mean, bits)
    return rgb[1:-1, 1:-1]


@pytest.mark.parametrize("big_endian", [False, True], ids=["little", "big"])
@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", BAYER)
def test_bayer_mosaics(encoding: str, padding: int, big_endian: bool) -> None:
    bits = BAYER[encoding][1]
    message = make_message(encoding, 7, 9, 9 * bits // 8, padding=padding, big_endian=big_endian)
    rgb = image_to_rgb(message, max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(rgb[1:-1, 1:-1], bayer_oracle(message))


@pytest.mark.parametrize("name", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_red_scene_is_red_in_every_mosaic(name: str) -> None:
    cell = [200 if letter == "r" else 0 for letter in name]
    mosaic = np.tile(np.array(cell, np.uint8).reshape(2, 2), (4, 4))
    message = array_to_image(mosaic, "mono8", Header())
    message.encoding = f"bayer_{name}8"
    rgb = image_to_rgb(message, max_pixels=MAX_PIXELS)
    assert (rgb == (200, 0, 0)).all()


def yuv_to_rgb(y: int, u: int, v: int) -> np.ndarray:
    """ITU-R BT.601, limited range."""
    luma, blue, red = 255 / 219 * (y - 16), 255 / 224 * (u - 128), 255 / 224 * (v - 128)
    rgb = (
        luma + 1.402 * red,
        luma - 1.772 * 0.114 / 0.587 * blue - 1.402 * 0.299 / 0.587 * red,
        luma + 1.772 * blue,
    )
    return np.clip(np.round(rgb), 0, 255)


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("encoding", PACKED_YUV)
def test_packed_yuv(encoding: str, padding: int) -> None:
    message = make_message(encoding, 5, 8, 16, padding=padding)
    data = bytes(message.data)
    expected = np.zeros((5, 8, 3))
    for row, pair in itertools.product(range(5), range(4)):
        at = row * message.step + 4 * pair
        u, left, v, right = (data[at + place] for place in PACKED_YUV[encoding])
        # No colour is defined below black; OpenCV takes 16 for it.
        expected[row, 2 * pair] = yuv_to_rgb(max(left, 16), u, v)
        expected[row, 2 * pair + 1] = yuv_to_rgb(max(right, 16), u, v)
    rgb = image_to_rgb(message, max_pixels=MAX_PIXELS)
    # OpenCV computes with integers of 20 bits: 1 of rounding.
    np.testing.assert_allclose(rgb, expected, atol=1)


@pytest.mark.parametrize("padding", [0, 4])
def test_nv21(padding: int) -> None:
    message = make_message("nv21", 4, 6, 6, padding=padding, rows=6)
    data, step = bytes(message.data), message.step
    expected = np.zeros((4, 6, 3))
    for row, column in itertools.product(range(4), range(6)):
        chroma = (4 + row // 2) * step + column // 2 * 2
        luma = max(data[row * step + column], 16)
        expected[row, column] = yuv_to_rgb(luma, data[chroma + 1], data[chroma])
    rgb = image_to_rgb(message, max_pixels=MAX_PIXELS)
    assert rgb.flags.c_contiguous
    np.testing.assert_allclose(rgb, expected, atol=1)


def test_every_encoding_has_an_oracle() -> None:
    assert set(ENCODINGS) == {*INTERLEAVED, *BAYER, *PACKED_YUV, "nv21"}
