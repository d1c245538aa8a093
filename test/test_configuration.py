# SPDX-License-Identifier: Apache-2.0
"""YAML that people and programs write, and what neither should."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from sparserefine_ros.configuration import Record, load_yaml, read_yaml
from sparserefine_ros.errors import ConfigurationError

BOMB = "a0: &a0 [1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 10)
)


class Size(Record):
    width: float


def test_what_programs_write_is_read() -> None:
    shared = [1, 2]
    value = {"mean": shared, "std": shared, "text": "ä"}
    assert "*id001" in yaml.safe_dump(value)
    assert load_yaml(yaml.safe_dump(value)) == value


def test_merges_are_read() -> None:
    text = "a: &a {x: 1, y: 0}\nb: &b {z: 3}\nc: {<<: *a, <<: *b, y: 2}\nd: {<<: [*a, *b]}"
    content = load_yaml(text)
    assert content["c"] == {"x": 1, "y": 2, "z": 3}
    assert content["d"] == {"x": 1, "y": 0, "z": 3}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: " + 5000 * "[", "nested too deeply|expected"),
        ("a: !!bool zz", "zz"),
        ("a: !!timestamp zz", "group"),
        ("a: 2024-02-30", "day"),
        ("a: [", "flow"),
        ("a: 1\nb: 2\na: 3", "'a' is given twice"),
        ("x: {1: 2, 1: 3}", "1 is given twice"),
        (BOMB, "expected 100000 values at most"),
        ("a: &a [*a]", "expected 100000 values at most"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        load_yaml(text)


def test_a_file_with_all_its_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "size.yaml"
    for text, why in (
        ("width: .nan", "finite"),
        (f"width: {math.inf}", "width: "),
        ("width: 1\nwidth: 2", "given twice"),
        ("[1]", "expected a mapping of fields, got list"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=rf"size\.yaml.*{why}"):
            read_yaml(path, Size, ConfigurationError)
    path.write_text("width: 2")
    assert read_yaml(path, Size, ConfigurationError).width == 2.0
