# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.zoo.classes import name_classes, read_classes


def test_a_number() -> None:
    classes = read_classes("19")
    assert [entry.name for entry in classes][:2] == ["class 0", "class 1"]
    assert len(classes) == 19


def test_colours_differ() -> None:
    assert len({entry.colour for entry in read_classes("255")}) > 240
    assert len({entry.colour for entry in read_classes("40")}) == 40


def test_a_data_set() -> None:
    classes = read_classes("cityscapes")
    assert len(classes) == 19
    assert (classes[13].name, classes[13].colour) == ("car", (0, 0, 142))


def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("road\n\n  wet road \ncar\n", encoding="utf-8")
    assert [entry.name for entry in read_classes(str(path))] == ["road", "wet road", "car"]


def test_the_file_of_a_data_set_or_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    assert [entry.name for entry in read_classes(str(tiny_bundle / "bundle.yaml"))] == [
        "road", "car", "sky",
    ]  # fmt: skip
    path = tmp_path / "dataset.yaml"
    path.write_text("classes:\n- {name: a, colour: [1, 2, 3]}\n- {name: b, colour: [4, 5, 6]}\n")
    assert read_classes(str(path))[1].colour == (4, 5, 6)
    path.write_text("classes:\n- {name: a, colour: [1, 2, 300]}\n- {name: b}\n")
    with pytest.raises(ConfigurationError, match=r"colour.*classes.1.colour: required"):
        read_classes(str(path))
    path.write_text("classes:\n- {name: a, colour: [1, 2, 3]}\n- {name: a, colour: [4, 5, 6]}\n")
    with pytest.raises(ConfigurationError, match="expected unique class names"):
        read_classes(str(path))


@pytest.mark.parametrize("text", ["1", "0", "256", "999999999999"])
def test_impossible_numbers(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"expected 2 to 255 classes, got {text}$"):
        read_classes(text)


def test_neither_number_nor_file() -> None:
    with pytest.raises(ConfigurationError, match=r"of cityscapes, .* got 'no/such'"):
        read_classes("no/such")


def test_names_that_occur_twice() -> None:
    with pytest.raises(ConfigurationError, match="some of them twice"):
        name_classes(["a", "b", "a"])
