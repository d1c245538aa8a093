# SPDX-License-Identifier: Apache-2.0
"""The recipes that ship fit their records."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparserefine_ros.ablation.recipe import AblationRecipe
from sparserefine_ros.configuration import Record, read_yaml
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.training.recipe import DenseRecipe, RefinerRecipe, SelectorRecipe

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
