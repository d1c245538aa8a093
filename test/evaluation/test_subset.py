# SPDX-License-Identifier: Apache-2.0
"""Parts cover every frame once."""

from __future__ import annotations

import pytest

from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.subset import ALL_FRAMES, Subset, parse_shard


@pytest.mark.parametrize(("limit", "used"), [(0, 11), (7, 7), (11, 11), (50, 11)])
@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_parts_cover_every_frame_once(limit: int, used: int, shards: int) -> None:
    parts = [Subset(limit, shard + 1, shards) for shard in range(shards)]
    assert sorted(i for part in parts for i in part.indices(11)) == list(range(used))
    assert {part.total(11) for part in parts} == {used}
    assert max(len(p.indices(11)) for p in parts) - min(len(p.indices(11)) for p in parts) <= 1


def test_all_frames_are_the_default() -> None:
    assert list(ALL_FRAMES.indices(3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("subset", "available", "text"),
    [
        (Subset(), 0, "at least one frame in part 1/1 of 0 frames"),
        (Subset(2, 3, 4), 9, "at least one frame in part 3/4 of 2 frames"),
    ],
)
def test_no_frame_left(subset: Subset, available: int, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        subset.indices(available)


def test_a_negative_limit() -> None:
    with pytest.raises(ConfigurationError, match=r"limit of 0 \(all\) or more frames, got -1"):
        Subset(-1)


def test_part_from_text() -> None:
    assert parse_shard("2/4") == (2, 4)


@pytest.mark.parametrize("text", ["", "2", "0/4", "5/4", "a/b", "1/0", "1/2/3", "-1/2"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"such as 2/4, got '{text}'"):
        parse_shard(text)
