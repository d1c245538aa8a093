# SPDX-License-Identifier: Apache-2.0
"""Names from topics, and every way to get the two lists of cameras wrong."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sparserefine_ros.ros.cameras import (
    NOT_SET,
    Camera,
    choose_cameras,
    find_list_mistakes,
    find_pairing_mistakes,
    name_of_topic,
)


def find_camera_mistakes(topics: Sequence[str], names: Sequence[str]) -> list[str]:
    """Of the lists by themselves, else of both together."""
    return find_list_mistakes(topics, names) or find_pairing_mistakes(topics, names)


@pytest.mark.parametrize("unset", [NOT_SET, ()])
def test_unset_lists_mean_the_single_camera(unset: tuple[str, ...]) -> None:
    assert find_camera_mistakes(unset, unset) == []
    assert choose_cameras(unset, unset) == (Camera("", "image"),)
    assert Camera("", "image").prefix == "~/"


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("/front/image_raw", "front"),
        ("/robot/front/image_raw", "front"),
        ("front/image", "front"),
        ("~/front/image", "front"),
        ("/front/image_raw/compressed", "front"),
        ("image", "image"),
        ("/compressed", "compressed"),
    ],
)
def test_names_come_from_the_topics(topic: str, name: str) -> None:
    assert name_of_topic(topic) == name
    assert find_camera_mistakes([topic], NOT_SET) == []
    (camera,) = choose_cameras([topic], NOT_SET)
    assert camera == Camera(name, topic)
    assert camera.prefix == f"~/{name}/"


def test_names_can_be_given() -> None:
    topics = ["/a/color/image", "/b/color/image"]
    assert find_camera_mistakes(topics, ["left", "right"]) == []
    assert choose_cameras(topics, ["left", "right"]) == (
        Camera("left", topics[0]),
        Camera("right", topics[1]),
    )


@pytest.mark.parametrize(
    ("topics", "names", "text"),
    [
        (["/a/image", ""], NOT_SET, "image_topics: expected topic names .* got ''"),
        (["/a b/image"], NOT_SET, "image_topics: expected topic names .* got '/a b/image'"),
        (["/a//image"], NOT_SET, "image_topics: expected topic names"),
        (["/a/image/"], NOT_SET, "image_topics: expected topic names"),
        (["/a/image"] * 2, NOT_SET, "each topic once, got /a/image twice"),
        (["/a/image", "/b/image"], ["a"], "one name for each of the 2 image_topics, got 1"),
        (NOT_SET, ["a"], "one name for each of the 0 image_topics, got 1"),
        (["/a/image"], ["a/b"], "letters, digits and underscores after a letter.*'a/b'"),
        (["/a/image"], ["1a"], "after a letter.*'1a'"),
        (["/a/image", "/b/image"], ["", "x"], "after a letter.*''"),
        (["/a/i", "/b/i"], ["x", "x"], "each name once, got 'x' twice or more$"),
        (
            ["/a/color/i", "/b/color/i"],
            NOT_SET,
            "got 'color' twice .*set camera_names",
        ),
    ],
)
def test_mistakes_are_named(topics: list[str], names: list[str], text: str) -> None:
    mistakes = find_camera_mistakes(topics, names)
    assert len(mistakes) == 1, mistakes
    with pytest.raises(ValueError, match=text):
        raise ValueError(mistakes[0])
