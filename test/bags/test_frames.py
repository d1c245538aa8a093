# SPDX-License-Identifier: Apache-2.0
"""Pictures of bags in every encoding, and what is wrong with them.

Bags come from the library; encoded pictures from OpenCV.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from bags.recording import (
    COMPRESSED,
    IMAGE,
    Entry,
    compressed,
    raw,
    record,
)
from conftest import smooth_picture

from sparserefine_ros.bags.frames import BagFrame, BagFrames
from sparserefine_ros.bags.reader import Bag
from sparserefine_ros.encodings import ENCODINGS
from sparserefine_ros.evaluation.subset import ALL_FRAMES, Subset

SECOND = 10**9
RGB = smooth_picture(6, 8)


def read(
    folder: Path, entries: Sequence[Entry], subset: Subset = ALL_FRAMES
) -> tuple[list[BagFrame], BagFrames]:
    with Bag(record(folder, entries)) as bag:
        frames = BagFrames(bag, "/image", subset)
        return list(frames), frames


def png(pixels: np.ndarray) -> np.ndarray:
    return cv2.imencode(".png", pixels)[1]


def test_headers_are_those_of_the_messages(tmp_path: Path) -> None:
    (frame,), _ = read(tmp_path / "bag", [raw(RGB, "rgb8", 7 * SECOND + 5, log_ns=9)])
    assert (frame.header.stamp_ns, frame.header.frame_id, frame.log_ns) == (
        7 * SECOND + 5,
        "front",
        9,
    )
    assert frame.header.text == "7.000000005"


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_every_encoding_of_the_node_is_read(tmp_path: Path, encoding: str) -> None:
    layout = ENCODINGS[encoding]
    shape = (layout.rows(6), 8 * layout.channels)
    dtype = np.uint16 if layout.bits == 16 else np.uint8
    pixels = np.full(shape, 200 if layout.bits == 8 else 200 * 257, dtype)
    entry = raw(pixels, encoding, SECOND, height=6, width=8)
    (frame,), frames = read(tmp_path / "bag", [entry])
    assert frame.image.shape == (6, 8, 3)
    assert frame.image.dtype == np.uint8
    if not encoding.startswith(("yuv", "uyvy", "yuyv", "nv21")):
        assert (frame.image == 200).all()
    assert frames.counts.encodings == {encoding: 1}


def test_bgr_and_grey_have_their_channels_in_place(tmp_path: Path) -> None:
    bgr, grey = np.ascontiguousarray(RGB[..., ::-1]), RGB[..., 0]
    entries = [raw(bgr, "bgr8", 1), raw(grey, "mono8", 2)]
    (colour, plain), _ = read(tmp_path / "bag", entries)
    np.testing.assert_array_equal(colour.image, RGB)
    np.testing.assert_array_equal(plain.image, np.stack([grey] * 3, -1))


def test_compressed_pictures(tmp_path: Path) -> None:
    entries = [
        compressed(png(RGB[..., ::-1]), "rgb8; png compressed bgr8", 1),
        compressed(png(RGB[..., 0]), "png", 2),
        compressed(cv2.imencode(".jpg", RGB)[1], "jpeg", 3),
    ]
    (lossless, grey, lossy), frames = read(tmp_path / "bag", entries)
    np.testing.assert_array_equal(lossless.image, RGB)
    np.testing.assert_array_equal(grey.image[..., 1], RGB[..., 0])
    assert lossy.image.shape == RGB.shape
    assert frames.counts.encodings["jpeg"] == 1


def test_mixed_encodings_and_sizes_are_counted(tmp_path: Path) -> None:
    larger = smooth_picture(9, 11)
    entries = [raw(RGB, "rgb8", 1), raw(larger, "bgr8", 2), raw(RGB[..., 0], "mono8", 3)]
    found, frames = read(tmp_path / "bag", entries)
    assert [frame.image.shape[:2] for frame in found] == [(6, 8), (9, 11), (6, 8)]
    assert frames.counts.to_json()["sizes"] == {"11x9": 1, "8x6": 2}
    assert frames.counts.to_json()["encodings"] == {"bgr8": 1, "mono8": 1, "rgb8": 1}


def test_unusable_pictures_are_counted_by_reason(tmp_path: Path) -> None:
    entries = [
        raw(RGB, "rgb8", 1),
        raw(RGB, "32FC4", 2),
        raw(RGB, "rgb8", 3, height=7),
        Entry("/image", IMAGE, 4, b"\x00\x01\x00\x00garbage"),
        raw(RGB, "rgb8", 5),
    ]
    found, frames = read(tmp_path / "bag", entries)
    assert [frame.index for frame in found] == [0, 4]
    counts = frames.counts.to_json()
    assert counts["rejected"] == {"data_size": 1, "encoding": 1, "message": 1}
    assert counts["first_rejection"].startswith("message 1: expected one of the encodings")
    assert (counts["messages"], counts["frames"]) == (5, 2)


def test_unusable_compressed_pictures(tmp_path: Path) -> None:
    whole = png(RGB)
    entries = [
        compressed(whole[:-20], "png", 1),
        compressed(whole[:0], "png", 2),
        Entry("/image", COMPRESSED, 3, b""),
        compressed(whole, "png", 4),
    ]
    found, frames = read(tmp_path / "bag", entries)
    assert [frame.index for frame in found] == [3]
    assert frames.counts.rejected == {"decode": 1, "empty": 1, "message": 1}


@pytest.mark.parametrize("shape", [(16385, 2, 3), (2, 16385, 3)])
def test_a_picture_with_a_side_too_long_is_left_out(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    strip = np.zeros(shape, np.uint8)
    entries = [raw(RGB, "rgb8", 1), raw(strip, "rgb8", 2), raw(RGB, "rgb8", 3)]
    found, frames = read(tmp_path / "bag", entries)
    assert [frame.index for frame in found] == [0, 2]
    assert frames.counts.to_json()["rejected"] == {"too_large": 1}
    assert "expected sides of 1 .. 16384 pixels, got" in frames.counts.first_rejection
    assert frames.counts.to_json()["sizes"] == {"8x6": 2}
    data = compressed(png(strip), "png", 1)
    found, frames = read(tmp_path / "compressed", [data])
    assert (found, frames.counts.rejected) == ([], {"too_large": 1})


def test_time_that_goes_back_is_counted(tmp_path: Path) -> None:
    """A looped recording: stamps start again, messages keep their order of recording."""
    stamps = [1, 2, 3, 1, 2, 3]
    entries = [raw(RGB, "rgb8", stamp * SECOND, log_ns=k) for k, stamp in enumerate(stamps)]
    found, frames = read(tmp_path / "bag", entries)
    assert [frame.header.stamp_ns // SECOND for frame in found] == stamps
    assert (frames.counts.stamps_back, frames.counts.recorded_back) == (1, 0)


@pytest.mark.parametrize(
    ("subset", "indices"),
    [(Subset(limit=2), [0, 1]), (Subset(0, 2, 2), [1, 3]), (Subset(3, 1, 2), [0, 2])],
)
def test_a_subset(tmp_path: Path, subset: Subset, indices: list[int]) -> None:
    entries = [raw(RGB, "rgb8", k) for k in range(5)]
    found, _ = read(tmp_path / "bag", entries, subset)
    assert [frame.index for frame in found] == indices
