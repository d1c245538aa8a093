# SPDX-License-Identifier: Apache-2.0
"""Pictures of bags in every encoding, what is wrong with them, and the labels that belong to them.

Bags come from the library; encoded pictures from OpenCV.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from bags.recording import COMPRESSED, IMAGE, Entry, compressed, raw, record
from conftest import smooth_picture

from sparserefine_ros.bags.frames import BagFrame, BagFrames
from sparserefine_ros.bags.labels import WINDOW_NS, FolderLabels, TopicLabels
from sparserefine_ros.bags.reader import Bag
from sparserefine_ros.encodings import ENCODINGS
from sparserefine_ros.errors import BagError, DatasetError
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


def labels_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, (6, 8), np.uint8)


def paired(folder: Path, entries: Sequence[Entry]) -> tuple[list[np.ndarray | None], TopicLabels]:
    with Bag(record(folder, entries)) as bag:
        labels = TopicLabels(bag, "/truth")
        return [labels(frame) for frame in BagFrames(bag, "/image")], labels


def test_labels_belong_to_the_picture_with_their_stamp(tmp_path: Path) -> None:
    entries = [
        # Recorded before its picture, after it, not at all, and twice for a looped stamp.
        raw(labels_of(1), "mono8", 1 * SECOND, topic="/truth", log_ns=1),
        raw(RGB, "rgb8", 1 * SECOND, log_ns=2),
        raw(RGB, "rgb8", 2 * SECOND, log_ns=3),
        raw(RGB, "rgb8", 3 * SECOND, log_ns=4),
        raw(labels_of(3), "8UC1", 3 * SECOND, topic="/truth", log_ns=5),
        raw(RGB, "rgb8", 1 * SECOND, log_ns=WINDOW_NS + 6),
        raw(labels_of(4), "mono8", 1 * SECOND, topic="/truth", log_ns=WINDOW_NS + 7),
    ]
    found, _ = paired(tmp_path / "bag", entries)
    assert found[1] is None
    for at, seed in ((0, 1), (2, 3), (3, 4)):
        np.testing.assert_array_equal(found[at], labels_of(seed))


def test_labels_far_from_their_picture_are_not_found(tmp_path: Path) -> None:
    entries = [
        raw(RGB, "rgb8", 1, log_ns=0),
        raw(labels_of(1), "mono8", 9, topic="/truth", log_ns=WINDOW_NS + 1),
        raw(labels_of(1), "mono8", 1, topic="/truth", log_ns=WINDOW_NS + 2),
    ]
    found, labels = paired(tmp_path / "bag", entries)
    assert found == [None]
    with pytest.raises(BagError, match=r"expected labels on /truth .* within 10 s of them, found"):
        labels.check(0, ())


def test_labels_without_a_stamp_belong_to_no_picture(tmp_path: Path) -> None:
    entries = [
        raw(RGB, "rgb8", 0, log_ns=1),
        raw(labels_of(1), "mono8", 0, topic="/truth", log_ns=2),
        raw(RGB, "rgb8", 1, log_ns=3),
        raw(labels_of(2), "mono8", 1, topic="/truth", log_ns=4),
    ]
    found, labels = paired(tmp_path / "bag", entries)
    assert found[0] is None
    np.testing.assert_array_equal(found[1], labels_of(2))
    assert labels.unusable == 1
    labels.check(0, ())


def test_compressed_labels_and_unusable_ones(tmp_path: Path) -> None:
    entries = [
        raw(RGB, "rgb8", 1),
        raw(RGB, "rgb8", 2),
        compressed(png(labels_of(1)), "mono8; png compressed ", 1, topic="/truth"),
        compressed(png(RGB), "png", 2, topic="/truth"),
    ]
    found, labels = paired(tmp_path / "bag", entries)
    np.testing.assert_array_equal(found[0], labels_of(1))
    assert found[1] is None
    assert labels.unusable == 1
    other = [raw(RGB, "rgb8", 1), raw(RGB, "rgb8", 1, topic="/truth")]
    found, labels = paired(tmp_path / "other", other)
    assert (found, labels.unusable) == ([None], 1)


def write_labels(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir()
    for seed, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), labels_of(seed))
    return folder


def test_a_folder_of_labels_by_order_or_by_stamp(tmp_path: Path) -> None:
    entries = [raw(RGB, "rgb8", (k + 1) * SECOND // 2) for k in range(3)]
    frames, _ = read(tmp_path / "bag", entries)
    by_order = FolderLabels(write_labels(tmp_path / "a", ["f1.png", "f2.png", "f10.png"]), 3)
    for seed, frame in enumerate(frames):
        np.testing.assert_array_equal(by_order(frame), labels_of(seed))
    names = ["1.500000000.png", "0_500000000.png"]
    by_stamp = FolderLabels(write_labels(tmp_path / "b", names), 3)
    np.testing.assert_array_equal(by_stamp(frames[2]), labels_of(0))
    assert by_stamp(frames[1]) is None
    np.testing.assert_array_equal(by_stamp(frames[0]), labels_of(1))


def test_numbers_that_begin_with_zeros_are_no_stamps(tmp_path: Path) -> None:
    frames, _ = read(tmp_path / "bag", [raw(RGB, "rgb8", k + 1) for k in range(2)])
    folder = write_labels(tmp_path / "a", ["0000000000.png", "0000000001.png"])
    (folder / "._0000000000.png").write_bytes(b"what another system keeps beside a file")
    labels = FolderLabels(folder, 2)
    for seed, frame in enumerate(frames):
        np.testing.assert_array_equal(labels(frame), labels_of(seed))
    labels.check(0, ())


def test_labels_by_order_need_a_whole_bag(tmp_path: Path) -> None:
    frames, _ = read(tmp_path / "bag", [raw(RGB, "rgb8", 10**9)])
    by_order = write_labels(tmp_path / "a", ["x.png"])
    with pytest.raises(
        BagError, match=r"a whole bag .* go by their order, got it is cut off; name"
    ):
        FolderLabels(by_order, 1, damage=("it is cut off",))
    labels = FolderLabels(by_order, 1)
    labels(frames[0])
    with pytest.raises(BagError, match=r"a whole bag .* got 2 messages too few; name"):
        labels.check(2, ())
    # Stamps tell which is which, whatever is missing.
    by_stamp = FolderLabels(write_labels(tmp_path / "b", ["1000000000.png"]), 1, damage=("cut",))
    assert by_stamp(frames[0]) is not None
    by_stamp.check(2, ("cut",))


def test_a_folder_of_labels_for_other_pictures(tmp_path: Path) -> None:
    frames, _ = read(tmp_path / "bag", [raw(RGB, "rgb8", 10**9)])
    labels = FolderLabels(write_labels(tmp_path / "a", ["2.000000000.png"]), 1)
    assert labels(frames[0]) is None
    with pytest.raises(BagError, match="named by the stamps of the pictures, none of the names"):
        labels.check(0, ())


def test_mistakes_with_a_folder_of_labels(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="found none in"):
        FolderLabels(tmp_path / "none", 3)
    folder = write_labels(tmp_path / "a", ["x.png", "y.png"])
    with pytest.raises(BagError, match=r"expected 3 label images .* got 2; name them by the stamp"):
        FolderLabels(folder, 3)
    (folder / "x.png").write_bytes(b"no picture")
    (frame,), _ = read(tmp_path / "bag", [raw(RGB, "rgb8", 1)])
    with pytest.raises(DatasetError, match="cannot decode"):
        FolderLabels(folder, 2)(frame)
