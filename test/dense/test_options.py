# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from sparserefine_ros.dense.options import Progress, parse_picture_sizes
from sparserefine_ros.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("", ()),
        ("1920x1080", ((1080, 1920),)),
        ("64x48, 128x96,128x100", ((48, 64), (96, 128), (100, 128))),
    ],
    ids=["none", "one", "range"],
)
def test_picture_sizes(text: str, sizes: tuple[tuple[int, int], ...]) -> None:
    assert parse_picture_sizes(text) == sizes


@pytest.mark.parametrize(
    "text", ["big", "0x5", "64", "64x48x3", "64x48,", "64x48,128x96", "6 4x48"]
)
def test_malformed_picture_sizes(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"expected a picture size such as .* got "):
        parse_picture_sizes(text)


@pytest.mark.parametrize("text", ["64x48,32x96,128x96", "64x48,64x47,64x48", "64x48,128x96,99x96"])
def test_a_range_must_grow_in_both_sides(text: str) -> None:
    with pytest.raises(ConfigurationError, match="in this order"):
        parse_picture_sizes(text)


def test_progress_in_words() -> None:
    assert str(Progress("waiting")) == "waiting"
    assert str(Progress("building", 0.425)) == "building, 42%"
