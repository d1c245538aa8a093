# SPDX-License-Identifier: Apache-2.0
"""Opening bags: whole, compressed, cut off, without their metadata, and what is none."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from bags.recording import (
    IMAGE,
    SENSOR_QOS,
    TEXT,
    Entry,
    raw,
    record,
    storage_file,
)
from rosbags.rosbag2 import CompressionMode

from sparserefine_ros.bags.frames import BagFrames
from sparserefine_ros.bags.overlap import read_ahead
from sparserefine_ros.bags.reader import Bag
from sparserefine_ros.bags.topics import check_image_topic, choose_image_topic
from sparserefine_ros.errors import BagError
from sparserefine_ros.evaluation.subset import Subset

COUNT = 6
EMPTY = """
rosbag2_bagfile_information: {relative_file_paths: [], topics_with_message_count: []}
"""
ZSTD_MAGIC = re.escape(b"\x28\xb5\x2f\xfd")
FORMS = [
    ("mcap", CompressionMode.NONE),
    ("mcap", CompressionMode.STORAGE),
    ("mcap", CompressionMode.FILE),
    ("mcap", CompressionMode.MESSAGE),
    ("sqlite3", CompressionMode.NONE),
    ("sqlite3", CompressionMode.FILE),
    ("sqlite3", CompressionMode.MESSAGE),
]


def pictures(height: int = 300, width: int = 400) -> list[np.ndarray]:
    """Noise, so that compression does not make everything fit in one chunk."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(COUNT)]


def entries(height: int = 300, width: int = 400) -> list[Entry]:
    shots = pictures(height, width)
    return [raw(shot, "rgb8", (k + 1) * 10**8) for k, shot in enumerate(shots)]


def read(path: Path) -> tuple[list[np.ndarray], tuple[str, ...]]:
    with Bag(path) as bag:
        frames = [frame.image.copy() for frame in BagFrames(bag, "/image")]
        return frames, bag.damage


@pytest.mark.parametrize(("storage", "mode"), FORMS)
def test_every_storage_gives_every_picture(
    tmp_path: Path, storage: str, mode: CompressionMode
) -> None:
    bag = record(tmp_path / "bag", entries(), storage=storage, compression=mode)
    found, damage = read(bag)
    np.testing.assert_array_equal(found, pictures())
    assert damage == ()


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_qos_of_the_metadata_does_not_matter(tmp_path: Path, storage: str) -> None:
    bag = record(tmp_path / "bag", entries(30, 40), storage=storage, qos=[SENSOR_QOS])
    metadata = bag / "metadata.yaml"
    text = metadata.read_text()
    changed = text.replace("best_effort", "reliable")
    assert changed != text
    metadata.write_text(changed)
    found, damage = read(bag)
    assert (len(found), damage) == (COUNT, ())


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize(
    "metadata", [None, "- damaged: [", "rosbag2_bagfile_information: {}", EMPTY]
)
def test_a_folder_without_usable_metadata(
    tmp_path: Path, storage: str, metadata: str | None
) -> None:
    bag = record(tmp_path / "bag", entries(30, 40), storage=storage)
    (bag / "metadata.yaml").unlink()
    if metadata is not None:
        (bag / "metadata.yaml").write_text(metadata)
    found, damage = read(bag)
    np.testing.assert_array_equal(found, pictures(30, 40))
    assert len(damage) == 1
    assert "metadata.yaml" in damage[0]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_storage_file_alone(tmp_path: Path, storage: str) -> None:
    found, damage = read(storage_file(record(tmp_path / "bag", entries(30, 40), storage=storage)))
    assert (len(found), damage) == (COUNT, ())


@pytest.mark.parametrize(
    ("storage", "mode"), [form for form in FORMS if form[1] != CompressionMode.FILE]
)
@pytest.mark.parametrize("share", [0.6, 0.99])
def test_a_cut_off_file_is_read_as_far_as_it_is_whole(
    tmp_path: Path, storage: str, mode: CompressionMode, share: float
) -> None:
    bag = record(tmp_path / "bag", entries(), storage=storage, compression=mode)
    path = storage_file(bag)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with Bag(bag) as opened:
        frames = BagFrames(opened, "/image")
        found = [frame.image.copy() for frame in frames]
        assert len(opened.damage) == 1
        assert path.name in opened.damage[0]
    assert 0 < len(found) <= COUNT
    assert len(found) >= COUNT * share - 3
    np.testing.assert_array_equal(found, pictures()[: len(found)])
    assert frames.counts.to_json()["missing"] == COUNT - len(found)
    # Evaluation reads in a thread of its own.
    with Bag(bag) as opened:
        read = read_ahead((frame.image.copy() for frame in BagFrames(opened, "/image")), 2)
        np.testing.assert_array_equal(list(read), found)


def test_what_is_beyond_the_limit_is_not_missing(tmp_path: Path) -> None:
    bag = record(tmp_path / "bag", entries(30, 40))
    with Bag(bag) as opened:
        frames = BagFrames(opened, "/image", Subset(2))
        assert len(list(frames)) == 2
    counts = frames.counts
    assert (counts.announced, counts.expected, counts.missing) == (COUNT, 2, 0)


def damage_second_chunk(path: Path, *, cut: int = 0) -> None:
    """Break the second of three compressed chunks, which hold two pictures each."""
    content = bytearray(path.read_bytes())
    starts = [at.start() for at in re.finditer(ZSTD_MAGIC, content)]
    assert len(starts) == 3
    content[starts[1] : starts[1] + 4] = b"none"
    path.write_bytes(content[: len(content) - cut])


def test_a_damaged_chunk_of_a_cut_off_file_is_left_out(tmp_path: Path) -> None:
    bag = record(tmp_path / "bag", entries(400, 600), compression=CompressionMode.STORAGE)
    damage_second_chunk(storage_file(bag), cut=20)
    found, damage = read(bag)
    assert len(damage) == 1
    shots = pictures(400, 600)
    np.testing.assert_array_equal(found, [shots[k] for k in (0, 1, 4, 5)])


def test_reading_ends_at_a_damaged_chunk_of_an_indexed_file(tmp_path: Path) -> None:
    bag = record(tmp_path / "bag", entries(400, 600), compression=CompressionMode.STORAGE)
    damage_second_chunk(storage_file(bag))
    found, damage = read(bag)
    np.testing.assert_array_equal(found, pictures(400, 600)[:2])
    assert "reading ended at damage" in damage[0]


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(BagError, match=rf"cannot read {tmp_path}: Permission denied; grant"):
        Bag(tmp_path)


def test_a_missing_part_of_a_split_recording(tmp_path: Path) -> None:
    bag = record(tmp_path / "bag", entries(30, 40))
    metadata = bag / "metadata.yaml"
    text = metadata.read_text()
    metadata.write_text(text.replace("- bag.mcap\n", "- bag.mcap\n  - bag_1.mcap\n", 1))
    found, damage = read(bag)
    assert len(found) == COUNT
    assert "bag_1.mcap" in damage[0]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: None, "expected a bag, there is no file or folder"),
        (lambda p: p.mkdir(), "found no .*metadata.yaml .*ros2 bag record"),
        (lambda p: p.write_text("x"), "expected a bag .a folder, or a file .mcap"),
    ],
    ids=["nothing", "empty folder", "another file"],
)
def test_what_is_no_bag(tmp_path: Path, make: object, text: str) -> None:
    path = tmp_path / "thing"
    make(path)  # type: ignore[operator]
    with pytest.raises(BagError, match=text):
        Bag(path)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("keep", [0, 7, 60])
def test_nothing_whole_in_it(tmp_path: Path, storage: str, keep: int) -> None:
    path = storage_file(record(tmp_path / "bag", entries(30, 40), storage=storage))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BagError, match="no message in it is whole"):
        Bag(tmp_path / "bag")


def test_a_damaged_compressed_file(tmp_path: Path) -> None:
    bag = record(tmp_path / "bag", entries(30, 40), compression=CompressionMode.FILE)
    path = storage_file(bag)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BagError, match="cannot decompress"):
        Bag(bag)


def with_topics(folder: Path, *topics: tuple[str, str]) -> Bag:
    shot = np.zeros((4, 5, 3), np.uint8)
    made = [
        Entry(topic, kind, 1, {"data": "text"})
        if kind == TEXT
        else raw(shot, "rgb8", 1, topic=topic)
        for topic, kind in topics
    ]
    shutil.rmtree(folder, ignore_errors=True)
    return Bag(record(folder, made))


def test_the_only_image_topic_is_the_default(tmp_path: Path) -> None:
    with with_topics(tmp_path / "a", ("/say", TEXT), ("/cam", IMAGE)) as bag:
        assert choose_image_topic(bag, None) == "/cam"
    with with_topics(tmp_path / "a", ("/truth", IMAGE), ("/cam", IMAGE)) as bag:
        assert choose_image_topic(bag, None, label_topic="/truth") == "/cam"
        assert choose_image_topic(bag, "/truth") == "/truth"


def test_errors_list_the_topics(tmp_path: Path) -> None:
    with with_topics(tmp_path / "a", ("/say", TEXT)) as bag:
        with pytest.raises(BagError, match=r"found 0; .*/say \(std_msgs/msg/String, 1 messages\)"):
            choose_image_topic(bag, None)
        with pytest.raises(BagError, match=r"it is missing; the bag holds /say"):
            check_image_topic(bag, "/cam")
        with pytest.raises(BagError, match="it is of type std_msgs/msg/String"):
            check_image_topic(bag, "/say")
    with (
        with_topics(tmp_path / "a", ("/left", IMAGE), ("/right", IMAGE)) as bag,
        pytest.raises(BagError, match=r"found 2; choose one with --image-topic; .*/left .*/right"),
    ):
        choose_image_topic(bag, None)
