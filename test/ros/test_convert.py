# SPDX-License-Identifier: Apache-2.0
"""Malformed messages, compressed messages, and arrays to messages."""

from __future__ import annotations

import array
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from ros.messages import MAX_PIXELS, make_message, refused
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sparserefine_ros.encodings import ENCODINGS
from sparserefine_ros.errors import ImageError
from sparserefine_ros.messages import REASONS, compressed_to_rgb
from sparserefine_ros.ros.convert import array_to_image, image_to_rgb


@pytest.mark.parametrize("padding", [0, 3])
def test_rgb8_is_a_view_only_without_padding(padding: int) -> None:
    message = make_message("rgb8", 4, 5, 15, padding=padding)
    rgb = image_to_rgb(message, max_pixels=MAX_PIXELS)
    assert np.shares_memory(rgb, np.frombuffer(message.data, np.uint8)) == (padding == 0)


@pytest.mark.parametrize(
    ("changes", "reason", "text"),
    [
        ({"width": 0}, "empty", "at least one pixel, got 0 x 4"),
        ({"height": 0}, "empty", "got 5 x 0"),
        ({"height": 0, "width": 0, "step": 0, "data": []}, "empty", "got 0 x 0"),
        ({"height": 10_000, "width": 10_000}, "too_large", "at most 0.1 megapixels"),
        ({"height": 2**32 - 1, "width": 2**32 - 1}, "too_large", "raise the limit"),
        ({"encoding": ""}, "encoding", "got ''"),
        ({"encoding": "RGB8"}, "encoding", "rgb8, .*got 'RGB8'"),
        ({"encoding": "32FC1"}, "encoding", "got '32FC1'"),
        ({"encoding": "x" * 100_000}, "encoding", r"xxx\.\.\.'"),
        ({"step": 14}, "step", "at least 15 bytes for 5 pixels of rgb8, got 14"),
        ({"step": 0}, "step", "got 0"),
        ({"step": 2**32 - 1}, "data_size", "got 60"),
        ({"height": 5}, "data_size", "expected 75 bytes of data .5 rows of 15., got 60"),
        ({"height": 3}, "data_size", "expected 45 bytes"),
        ({"data": array.array("B")}, "data_size", "got 0"),
        ({"data": array.array("B", bytes(59))}, "data_size", "got 59"),
        ({"data": array.array("B", bytes(61))}, "data_size", "got 61"),
    ],
)
def test_malformed_messages(changes: dict[str, object], reason: str, text: str) -> None:
    message = make_message("rgb8", 4, 5, 15)
    image_to_rgb(message, max_pixels=MAX_PIXELS)
    for name, value in changes.items():
        setattr(message, name, value)
    refused(lambda: image_to_rgb(message, max_pixels=MAX_PIXELS), reason, text)


def test_the_largest_picture_is_still_accepted() -> None:
    message = make_message("mono8", 4, 5, 5)
    assert image_to_rgb(message, max_pixels=20).shape == (4, 5, 3)
    refused(lambda: image_to_rgb(message, max_pixels=19), "too_large")


@pytest.mark.parametrize(
    ("encoding", "height", "width", "row_bytes", "text"),
    [
        ("yuv422", 4, 5, 10, "an even width for yuv422, got 5 x 4"),
        ("yuyv", 4, 5, 10, "an even width"),
        ("nv21", 4, 5, 5, "even sides"),
        ("nv21", 3, 6, 6, "even sides"),
        ("bayer_rggb8", 2, 6, 6, "sides of at least 3"),
        ("bayer_grbg16", 6, 1, 2, "sides of at least 3"),
    ],
)
def test_impossible_sizes(
    encoding: str, height: int, width: int, row_bytes: int, text: str
) -> None:
    message = make_message(encoding, height, width, row_bytes, rows=2 * height)
    refused(lambda: image_to_rgb(message, max_pixels=MAX_PIXELS), "size", text)


def test_an_odd_step_has_no_16_bit_values() -> None:
    message = make_message("mono16", 4, 5, 10, padding=1)
    refused(lambda: image_to_rgb(message, max_pixels=MAX_PIXELS), "step", "an even one, got 11")


def test_random_messages_are_converted_or_refused_with_a_reason() -> None:
    random = np.random.default_rng(7)
    names = [*ENCODINGS, "", "rgb", "32FC3"]
    outcomes: dict[str, int] = {}
    for _ in range(2000):
        height, width = random.integers(0, 9, 2).tolist()
        encoding = names[random.integers(len(names))]
        layout = ENCODINGS.get(encoding, ENCODINGS["rgb8"])
        step = max(0, width * layout.pixel_bytes + int(random.integers(-1, 3)))
        size = max(0, layout.rows(height) * step + int(random.choice((0, 0, 0, -1, 1, 40))))
        data = array.array("B", random.bytes(size))
        message = Image(
            encoding=encoding,
            height=height,
            width=width,
            step=step,
            data=data,
            is_bigendian=bool(random.integers(2)),
        )
        try:
            rgb = image_to_rgb(message, max_pixels=60)
        except ImageError as err:
            outcomes[err.reason] = outcomes.get(err.reason, 0) + 1
        else:
            assert rgb.shape == (height, width, 3)
            outcomes["good"] = outcomes.get("good", 0) + 1
    assert sum(outcomes.values()) == 2000
    assert set(outcomes) == {*REASONS, "good"} - {"decode"}
    assert min(outcomes.values()) > 10


def compress(pixels: np.ndarray, suffix: str, form: str) -> CompressedImage:
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return CompressedImage(format=form, data=array.array("B", data.tobytes()))


def smooth_bgr(dtype: type[np.generic] = np.uint8) -> np.ndarray:
    """[24, 32, 3], channels of clearly different brightness, without fine detail for JPEG."""
    rows, columns = np.mgrid[0:24, 0:32]
    scale = np.iinfo(dtype).max // 255
    bgr = np.stack([20 + rows, 110 + columns, 200 + rows // 2], axis=-1)
    return (bgr * scale).astype(dtype)


@pytest.mark.parametrize(
    ("form", "stored_rgb"),
    [
        ("png", False),
        ("", False),
        ("PNG", False),
        ("bgr8; png compressed bgr8", False),
        ("rgb8; png compressed bgr8", False),
        ("rgb8; png compressed ", False),
        ("rgb8; png compressed rgb8", True),
    ],
)
def test_png_is_exact(form: str, stored_rgb: bool) -> None:
    bgr = smooth_bgr()
    message = compress(bgr, ".png", form)
    rgb = compressed_to_rgb(message, max_pixels=MAX_PIXELS)
    assert rgb.flags.c_contiguous
    np.testing.assert_array_equal(rgb, bgr if stored_rgb else bgr[..., ::-1])


@pytest.mark.parametrize("form", ["jpeg", "jpg", "rgb8; jpeg compressed bgr8"])
def test_jpeg_is_close(form: str) -> None:
    bgr = smooth_bgr()
    rgb = compressed_to_rgb(compress(bgr, ".jpg", form), max_pixels=MAX_PIXELS)
    # JPEG at OpenCV's quality of 95 on smooth colours.
    np.testing.assert_allclose(rgb.astype(int), bgr[..., ::-1], atol=4)


def test_png_of_other_depths_and_channels() -> None:
    deep = smooth_bgr(np.uint16)
    alpha = np.dstack([smooth_bgr(), np.full((24, 32), 7, np.uint8)])
    grey = smooth_bgr()[..., 1]
    expected = smooth_bgr()[..., ::-1]
    for pixels, form in ((deep, "rgb16; png compressed bgr16"), (alpha, "png")):
        rgb = compressed_to_rgb(compress(pixels, ".png", form), max_pixels=MAX_PIXELS)
        np.testing.assert_array_equal(rgb, expected)
    rgb = compressed_to_rgb(compress(grey, ".png", "mono8; png compressed "), max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(rgb, np.dstack([grey] * 3))


def test_a_compressed_mosaic_is_interpolated() -> None:
    mosaic = np.tile(np.array([[200, 0], [0, 0]], np.uint8), (4, 4))
    message = compress(mosaic, ".png", "bayer_rggb8; png compressed ")
    assert (compressed_to_rgb(message, max_pixels=MAX_PIXELS) == (200, 0, 0)).all()


def as_compressed(data: bytes, form: str = "png") -> CompressedImage:
    return CompressedImage(format=form, data=array.array("B", data))


def test_malformed_compressed_messages() -> None:
    jpeg = bytes(compress(smooth_bgr(), ".jpg", "").data)
    png = bytes(compress(smooth_bgr(), ".png", "").data)
    cases = [
        (b"", "png", "empty", "got 0 bytes"),
        (png, "webp", "encoding", "got the format 'webp'"),
        (png, "16UC1; compressedDepth png", "encoding", "compressedDepth"),
        (b"GIF89a..", "png", "decode", "47 49 46"),
        (jpeg[:-2], "jpeg", "decode", "cut off"),
        (jpeg[: len(jpeg) // 2], "jpeg", "decode", "cut off"),
        (png[: len(png) // 2], "png", "decode", "cut off"),
        (jpeg[:10], "jpeg", "decode", "incomplete"),
        (png[:20], "png", "decode", "incomplete"),
    ]
    for data, form, reason, text in cases:
        message = as_compressed(data, form)
        refused(lambda m=message: compressed_to_rgb(m, max_pixels=MAX_PIXELS), reason, text)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_huge_compressed_picture_is_refused_before_it_is_decoded(
    suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = compress(np.zeros((10_000, 10_000), np.uint8), suffix, suffix[1:])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    refused(lambda: compressed_to_rgb(message, max_pixels=50_000_000), "too_large", "10000 x 10000")


@pytest.mark.parametrize("width", [1, 7])
@pytest.mark.parametrize(
    ("encoding", "channels", "dtype"),
    [("mono8", 0, np.uint8), ("rgb8", 3, np.uint8), ("32FC1", 0, np.float32)],
)
def test_arrays_to_messages(encoding: str, channels: int, dtype: type, width: int) -> None:
    shape = (3, width, channels) if channels else (3, width)
    pixels = (np.random.default_rng(1).random(shape) * 255).astype(dtype)
    header = Header(frame_id="camera")
    message = array_to_image(pixels, encoding, header)
    assert message.header is header
    assert (message.height, message.width, message.encoding) == (3, width, encoding)
    assert message.step == width * (channels or 1) * np.dtype(dtype).itemsize
    assert bool(message.is_bigendian) == (sys.byteorder == "big")
    assert isinstance(message.data, array.array)
    assert message.data.tobytes() == pixels.tobytes()


@pytest.mark.parametrize("make", [lambda a: a[::2, ::-1], np.asfortranarray, lambda a: a.T])
def test_strided_arrays_to_messages(make: Callable[[np.ndarray], np.ndarray]) -> None:
    pixels = make(np.arange(48, dtype=np.uint8).reshape(6, 8))
    message = array_to_image(pixels, "mono8", Header())
    back = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    np.testing.assert_array_equal(back, pixels)


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("mono8", np.zeros((2, 2), bool)),
        ("mono8", np.zeros((2, 2, 1), np.uint8)),
        ("rgb8", np.zeros((2, 2), np.uint8)),
        ("rgb8", np.zeros((2, 2, 4), np.uint8)),
        ("32FC1", np.zeros((2, 2))),
    ],
)
def test_arrays_that_do_not_fit_their_encoding(encoding: str, pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"for {encoding}, got {pixels.dtype}"):
        array_to_image(pixels, encoding, Header())


def test_large_arrays_take_the_fast_path() -> None:
    pixels = np.zeros((1024, 2048, 3), np.uint8)
    times_s = []
    for _ in range(5):
        start_s = time.perf_counter()
        array_to_image(pixels, "rgb8", Header())
        times_s.append(time.perf_counter() - start_s)
    # 1 ms against 200 ms and more when every byte is checked.
    assert min(times_s) < 0.05


def test_damaged_compressed_pictures_are_converted_or_refused_with_a_reason() -> None:
    random = np.random.default_rng(11)
    noise = random.integers(0, 256, (20, 30, 3), np.uint8)
    intact = [bytes(compress(noise, suffix, "").data) for suffix in (".jpg", ".png")]
    outcomes: dict[str, int] = {}
    for trial in range(400):
        data = bytearray(intact[trial % 2])
        for at in random.integers(0, 60 if trial % 4 < 2 else len(data), 1 + trial % 3):
            data[at] = random.integers(256)
        try:
            rgb = compressed_to_rgb(as_compressed(bytes(data), ""), max_pixels=MAX_PIXELS)
        except ImageError as err:
            outcomes[err.reason] = outcomes.get(err.reason, 0) + 1
        else:
            assert rgb.shape[2] == 3
            outcomes["good"] = outcomes.get("good", 0) + 1
    assert sum(outcomes.values()) == 400
    assert set(outcomes) <= {"good", "decode", "too_large", "empty"}
    assert min(outcomes["good"], outcomes["decode"]) > 20
