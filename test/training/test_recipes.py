# SPDX-License-Identifier: Apache-2.0
"""The recipes that ship fit their records."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from sparserefine_ros.ablation.recipe import AblationRecipe
from sparserefine_ros.configuration import Record, read_yaml
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.training.recipe import DenseRecipe, RefinerRecipe, Schedule, SelectorRecipe

FOLDER = Path(__file__).parents[2] / "config" / "recipes"
KINDS: dict[str, type[Record]] = {
    "dense.yaml": DenseRecipe,
    "refiner.yaml": RefinerRecipe,
    "selector.yaml": SelectorRecipe,
    "street_large_dense.yaml": DenseRecipe,
    "street_large_dense_more.yaml": DenseRecipe,
    "street_large_full.yaml": DenseRecipe,
    "street_large_full_more.yaml": DenseRecipe,
    "street_large_refiner.yaml": RefinerRecipe,
    "street_small_ablation.yaml": AblationRecipe,
    "street_small_dense.yaml": DenseRecipe,
    "street_small_full.yaml": DenseRecipe,
    "street_small_refiner.yaml": RefinerRecipe,
}


def test_every_recipe_is_listed() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_recipe_is_read(name: str) -> None:
    assert read_yaml(FOLDER / name, KINDS[name], ConfigurationError)


@pytest.mark.parametrize(
    ("section", "changes", "text"),
    [
        ("augmentation", {"scale": [2.0, 0.5]}, "expected the smallest factor first"),
        ("augmentation", {"crop": [512, 100_000]}, "16384"),
        ("schedule", {"learning_rate": 1e300}, "1000"),
        ("schedule", {"workers": 10**9}, "256"),
        ("schedule", {"gradient_clip": float("nan")}, "greater than 0"),
    ],
)
def test_values_that_cannot_be_meant(
    section: str, changes: dict[str, object], text: str, tmp_path: Path
) -> None:
    fields = yaml.safe_load((FOLDER / "refiner.yaml").read_text())
    fields[section] |= changes
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(ConfigurationError, match=text):
        read_yaml(tmp_path / "recipe.yaml", RefinerRecipe, ConfigurationError)


def test_a_clip_that_leaves_gradients_as_they_are(tmp_path: Path) -> None:
    class OfSchedule(Record):
        schedule: Schedule

    path = tmp_path / "recipe.yaml"
    path.write_text("schedule: {epochs: 1, batch_size: 1, gradient_clip: .inf}")
    assert read_yaml(path, OfSchedule, ConfigurationError).schedule.gradient_clip == math.inf
    path.write_text("schedule: {epochs: 1, batch_size: 1, gradient_clip: .nan}")
    with pytest.raises(ConfigurationError, match=r"gradient_clip: .*nan"):
        read_yaml(path, OfSchedule, ConfigurationError)
