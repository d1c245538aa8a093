# SPDX-License-Identifier: Apache-2.0
"""Bags made of data sets and pictures, read back by the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bags.recording import STORE
from rosbags.highlevel import AnyReader
from tiny_data import TinyData

from sparserefine_ros.bags.record import RecordOptions, record_dataset, record_source
from sparserefine_ros.bags.writer import write_bag
from sparserefine_ros.errors import BagError, ConfigurationError
from sparserefine_ros.sources import open_source


def messages(folder: Path) -> list[tuple[str, int, Any]]:
    with AnyReader([folder], default_typestore=STORE) as reader:
        return [
            (connection.topic, log_ns, reader.deserialize(data, connection.msgtype))
            for connection, log_ns, data in reader.messages()
        ]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_labelled_data_set(tmp_path: Path, storage: str, compression: str) -> None:
    options = RecordOptions(rate_hz=4.0, labels=True, storage=storage, compression=compression)
    assert record_dataset(TinyData(3), tmp_path / "bag", options) == 3
    found = messages(tmp_path / "bag")
    assert [topic for topic, _, _ in found] == ["/camera/image", "/camera/labels"] * 3
    for place, (topic, log_ns, message) in enumerate(found):
        sample, stamp = TinyData(3)[place // 2], message.header.stamp
        assert stamp.sec * 10**9 + stamp.nanosec == log_ns == 10**9 + place // 2 * 250_000_000
        assert message.header.frame_id == "camera"
        if topic == "/camera/image":
            assert (message.encoding, message.step) == ("rgb8", 132)
            np.testing.assert_array_equal(message.data.reshape(30, 44, 3), sample.image)
        else:
            assert (message.encoding, message.step) == ("mono8", 44)
            np.testing.assert_array_equal(message.data.reshape(30, 44), sample.labels)


def test_compressed_pictures_and_lossless_labels(tmp_path: Path) -> None:
    record_dataset(TinyData(1), tmp_path / "bag", RecordOptions(labels=True, compressed=True))
    (image, labels), sample = messages(tmp_path / "bag"), TinyData(1)[0]
    assert (image[0], labels[0]) == ("/camera/image/compressed", "/camera/labels/compressed")
    assert image[2].format == "rgb8; jpeg compressed bgr8"
    bgr = cv2.imdecode(image[2].data, cv2.IMREAD_COLOR)
    difference = np.abs(bgr[..., ::-1].astype(int) - sample.image)
    assert np.median(difference) < 8
    found = cv2.imdecode(labels[2].data, cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, sample.labels)


def test_a_folder_and_an_endless_street(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, grey in (("f10.png", 10), ("f2.png", 2)):
        assert cv2.imwrite(str(pictures / name), np.full((4, 5, 3), grey, np.uint8))
    source = open_source(pictures)
    assert record_source(source, tmp_path / "bag", RecordOptions()) == 2
    assert [message.data[0] for _, _, message in messages(tmp_path / "bag")] == [2, 10]
    street = open_source("street:1:32x16")
    assert record_source(street, tmp_path / "street", RecordOptions(limit=2)) == 2


def test_an_earlier_bag_is_replaced_only_when_the_new_one_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "bag"
    record_dataset(TinyData(1), folder, RecordOptions())
    with pytest.raises(RuntimeError, match="stop"), write_bag(folder):
        raise RuntimeError("stop")
    assert len(messages(folder)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]
    record_dataset(TinyData(2), folder, RecordOptions(storage="sqlite3"))
    assert len(messages(folder)) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["bag.db3", "metadata.yaml"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rate_hz": 0.0}, "expected a rate of 0.001 .. 1e6 Hz, got 0.0"),
        ({"rate_hz": float("nan")}, "expected a rate of 0.001 .. 1e6 Hz, got nan"),
        ({"limit": -1}, "expected a limit of 0"),
        ({"storage": "csv"}, "expected one of mcap, sqlite3, got 'csv'"),
        ({"compression": "lz4"}, "expected one of none, zstd, got 'lz4'"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        record_dataset(TinyData(1), tmp_path / "bag", RecordOptions(**options))


def test_labels_need_a_data_set_and_a_folder_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected labels to come from a data set"):
        record_source(open_source("street"), tmp_path / "bag", RecordOptions(labels=True))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(BagError, match="expected a new folder"):
        record_dataset(TinyData(1), tmp_path / "other", RecordOptions())


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_only_a_written_bag_and_nothing_else_is_replaced(tmp_path: Path, storage: str) -> None:
    folder = tmp_path / "bag"
    options = RecordOptions(storage=storage)
    record_dataset(TinyData(1), folder, options)
    precious = folder / "precious.mcap"
    precious.write_text("x")
    with pytest.raises(BagError, match=r"got .*bag: it also holds precious.mcap; choose another"):
        record_dataset(TinyData(1), folder, options)
    precious.rename(tmp_path / "precious.mcap")
    metadata = folder / "metadata.yaml"
    text = metadata.read_text()
    for changed, found in (
        (
            text.replace("ros_distro: rosbags", "ros_distro: jazzy"),
            "its bag is a recording of jazz",
        ),
        (text.replace("ros_distro: rosbags", ""), "there is no metadata.yaml of a bag written by"),
        ("name: a project", "there is no metadata.yaml of a bag written by rosbags"),
        ("- [", "there is no metadata.yaml of a bag written by rosbags"),
    ):
        assert changed != text
        metadata.write_text(changed)
        with pytest.raises(BagError, match=found):
            record_dataset(TinyData(1), folder, options)
        assert metadata.read_text() == changed
    metadata.write_text(text)
    assert record_dataset(TinyData(2), folder, options) == 2
    with pytest.raises(BagError, match=r"it is a file; choose another"):
        record_dataset(TinyData(1), tmp_path / "precious.mcap", options)
