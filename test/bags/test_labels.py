# SPDX-License-Identifier: Apache-2.0
"""The labels that belong to the pictures of a bag, from a topic or from a folder.

Bags come from the library or are made by hand; encoded pictures from OpenCV.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from bags.recording import Entry, compressed, raw, record, record_unindexed
from bags.test_frames import RGB, SECOND, png, read
from data.files import write_palette_png

from sparserefine_ros.bags.frames import BagFrames, message_to_labels, read_message
from sparserefine_ros.bags.labels import WINDOW_NS, FolderLabels, TopicLabels
from sparserefine_ros.bags.reader import Bag
from sparserefine_ros.errors import BagError, DatasetError, ImageError
from sparserefine_ros.evaluation.subset import Subset


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


@pytest.mark.parametrize("delay_ns", [-5 * SECOND, 5 * SECOND])
@pytest.mark.parametrize("every", [1, 4])
def test_labels_in_a_file_without_an_index(tmp_path: Path, delay_ns: int, every: int) -> None:
    """Late or sparse labels are far from their pictures in the file, and read at the same time."""
    stamps = [(k + 10) * SECOND for k in range(12)]
    entries = [raw(RGB, "rgb8", stamp) for stamp in stamps] + [
        raw(labels_of(k), "mono8", stamp, topic="/truth", log_ns=stamp + delay_ns)
        for k, stamp in enumerate(stamps)
        if k % every == 0
    ]
    entries.sort(key=lambda entry: entry.log_ns)
    with Bag(record_unindexed(tmp_path / "bag.mcap", entries)) as bag:
        labels = TopicLabels(bag, "/truth")
        found = [(frame.header.stamp_ns, labels(frame)) for frame in BagFrames(bag, "/image")]
        assert bag.damage == ()
    assert [stamp for stamp, _ in found] == stamps
    for k, (_, pixels) in enumerate(found):
        if k % every:
            assert pixels is None
        else:
            np.testing.assert_array_equal(pixels, labels_of(k))


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


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_png_labels_of_any_depth_give_their_numbers(tmp_path: Path, depth: int, grey: bool) -> None:
    numbers = np.random.default_rng(5).integers(0, 2**depth, (6, 8)).astype(np.uint8)
    write_palette_png(tmp_path / "a.png", numbers, depth=depth, grey=grey)
    data = np.fromfile(tmp_path / "a.png", np.uint8)
    entries = [raw(RGB, "rgb8", 1), compressed(data, "png", 1, topic="/truth")]
    (found,), labels = paired(tmp_path / "bag", entries)
    np.testing.assert_array_equal(found, numbers)
    assert labels.unusable == 0


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".webp"])
def test_labels_in_another_codec_than_png_are_refused(tmp_path: Path, suffix: str) -> None:
    data = cv2.imencode(suffix, labels_of(1))[1]
    entries = [raw(RGB, "rgb8", 1), compressed(data, "mono8; png compressed ", 1, topic="/truth")]
    found, labels = paired(tmp_path / "bag", entries)
    assert (found, labels.unusable) == ([None], 1)
    with Bag(tmp_path / "bag") as bag:
        (recorded,) = bag.messages(["/truth"])
    with pytest.raises(ImageError, match=r"expected labels as PNG, .*; publish them so") as error:
        message_to_labels(read_message(recorded), recorded.type)
    assert error.value.reason == "encoding"


def test_a_part_of_a_bag_may_have_no_labels(tmp_path: Path) -> None:
    """Every second picture is labelled, and of two parts one has all of these."""
    entries = [raw(RGB, "rgb8", (k + 1) * SECOND) for k in range(4)]
    entries += [raw(labels_of(k), "mono8", k * SECOND, topic="/truth") for k in (1, 3)]
    entries.sort(key=lambda entry: entry.log_ns)
    folder = write_labels(tmp_path / "labels", ["1.000000000.png", "3.000000000.png"])
    with Bag(record(tmp_path / "bag", entries)) as bag:
        for shard, labelled in ((1, 2), (2, 0)):
            for labels in (TopicLabels(bag, "/truth"), FolderLabels(folder, 4)):
                found = [labels(frame) for frame in BagFrames(bag, "/image", Subset(0, shard, 2))]
                assert sum(pixels is not None for pixels in found) == labelled
                labels.check(0, (), part=True)
                if not labelled:
                    with pytest.raises(BagError, match="expected label"):
                        labels.check(0, ())


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
