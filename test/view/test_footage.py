# SPDX-License-Identifier: Apache-2.0
"""Pictures of every kind of source, numbered and stamped alike."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import smooth_picture

from sparserefine_ros.errors import BagError, ConfigurationError, ImageError
from sparserefine_ros.view.footage import open_footage


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        assert cv2.imwrite(str(folder / f"{index}.png"), smooth_picture(21, 33, seed=index))
    return folder


@pytest.mark.parametrize(("limit", "count"), [(0, 3), (2, 2), (9, 3)])
def test_a_folder(pictures: Path, limit: int, count: int) -> None:
    with open_footage(str(pictures), limit=limit) as footage:
        assert footage.total == count
        shots = list(footage.shots)
    assert [(shot.index, shot.name, shot.stamp_ns) for shot in shots] == [
        (index, str(index), None) for index in range(count)
    ]
    assert not footage.remarks()


def test_an_endless_street_ends() -> None:
    with open_footage("street:1:32x24") as footage:
        assert footage.total == 30
        (shot,) = islice(footage.shots, 1)
    assert shot.image.shape == (24, 32, 3)


def test_a_bag_has_stamps_and_remarks(tmp_path: Path) -> None:
    from bags.recording import raw, record

    image = smooth_picture(12, 16)
    entries = [raw(image, "rgb8", stamp_ns) for stamp_ns in (10**8, 25 * 10**7)]
    broken = raw(image, "yuv9000", 2 * 10**8)
    bag = record(tmp_path / "drive", [entries[0], broken, entries[1]])
    with open_footage(str(bag)) as footage:
        assert footage.total == 3
        shots = list(footage.shots)
        assert [(shot.index, shot.stamp_ns) for shot in shots] == [(0, 10**8), (2, 25 * 10**7)]
        np.testing.assert_array_equal(shots[1].image, image)
        (remark,) = footage.remarks()
    assert "1 messages cannot be used" in remark
    assert "yuv9000" in remark
    with open_footage(str(bag), image_topic="/image", limit=1) as footage:
        assert [shot.index for shot in footage.shots] == [0]
    with pytest.raises(BagError, match="/image"), open_footage(str(bag), image_topic="/other"):
        pass


@pytest.mark.parametrize(
    ("source", "how", "error", "text"),
    [
        ("nowhere/at_all", {}, ImageError, "nowhere"),
        ("nowhere.mcap", {}, BagError, "no file or folder nowhere.mcap"),
        ("street", {"limit": -1}, ConfigurationError, "limit of 0"),
        ("street", {"image_topic": "/a"}, ConfigurationError, "leave --image-topic out"),
        ("x" * 5000, {}, ImageError, "cannot read"),
    ],
    ids=["path", "bag", "limit", "topic", "long"],
)
def test_bad_sources(source: str, how: dict, error: type[Exception], text: str) -> None:
    if source.endswith(".mcap"):
        pytest.importorskip("rosbags", reason="rosbags is not installed")
    with pytest.raises(error, match=text), open_footage(source, **how):
        pass
