# SPDX-License-Identifier: Apache-2.0
"""A whole ablation on tiny data, and what it plans, refuses and does again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import write_pointwise_onnx

from sparserefine_ros.ablation import study
from sparserefine_ros.ablation.recipe import AblationRecipe
from sparserefine_ros.ablation.runs import DEFAULT, Ablation
from sparserefine_ros.ablation.study import run_ablation
from sparserefine_ros.ablation.thresholds import Scores, measure_scores
from sparserefine_ros.bundle import Bundle, seal_bundle
from sparserefine_ros.cli import main
from sparserefine_ros.data.datasets import open_dataset
from sparserefine_ros.data.street import CLASS_NAMES
from sparserefine_ros.errors import ConfigurationError

DATA = "street:3:2:66x50"
CLASSES = len(CLASS_NAMES)
REFINER = {
    "name": "small",
    "train": [{"data": DATA}],
    "validate_on": DATA,
    "selector": {"threshold_nats": 1.0},
    "extractor": {"widths": [4, 6], "blocks": 1},
    "inputs": ["rgb", "logits"],
    "max_train_share": 0.5,
    "schedule": {"epochs": 1, "batch_size": 1, "workers": 0},
    "augmentation": {"crop": [32, 48]},
}
FIELDS = {
    "refiner": REFINER,
    "evaluate_on": DATA,
    "extractors": [
        {"kind": "pointnet", "widths": [4]},
        {"widths": [4], "blocks": 1},
        {"widths": [4, 6], "blocks": 1},
    ],
}
ONE_RUN = {
    "selectors": ["entropy"],
    "densities": [],
    "inputs": [["rgb", "logits"]],
    "extractors": [],
    "ensemblers": ["gated"],
}


def make_recipe(**changes: Any) -> AblationRecipe:
    return AblationRecipe.model_validate({**FIELDS, **changes})


def make_dense(
    folder: Path, *, features: bool = True, names: Sequence[str] = CLASS_NAMES
) -> Bundle:
    rng = np.random.default_rng(5)
    weight = rng.normal(0, 1, (CLASSES, 3)).astype(np.float32)
    write_pointwise_onnx(folder / "foreign.onnx", weight, np.zeros(CLASSES, np.float32))
    dense = {"file": {"path": "foreign.onnx"}, "input": {"scale": 0.5}}
    if features:
        dense["features"] = {"name": "scores", "channels": CLASSES}
    fields = {
        "name": "foreign",
        "licence": "theirs",
        "classes": [{"name": name, "colour": [i, 0, 0]} for i, name in enumerate(names)],
        "dense": dense,
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    return seal_bundle(folder)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_dense(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def scores(dense: Bundle) -> dict[str, Scores]:
    return measure_scores(dense, open_dataset(DATA, "val"))


def test_thresholds_give_their_density() -> None:
    scores = Scores(np.random.default_rng(0).random(10_000).astype(np.float32))
    for density in (0.03, 0.5, 0.97):
        assert scores.density_at(scores.threshold_at(density)) == pytest.approx(density, abs=1e-3)
    assert scores.threshold_at(1.0) == 0.0
    assert scores.density_at(0.0) == 1.0


class TestPlan:
    def test_each_setting_is_trained_once(self, dense: Bundle, scores: dict[str, Scores]) -> None:
        ablation = Ablation(make_recipe(), dense, scores)
        assert [table.number for table in ablation.tables] == ["5a", "5b", "5c", "5d", "5e"]
        assert [len(table.rows) for table in ablation.tables] == [5, 5, 4, 3, 4]
        # 21 rows, of which five show the default setting.
        assert len(ablation.runs) == 17
        shown = {row.run for table in ablation.tables for row in table.rows}
        assert shown == set(ablation.runs)
        assert next(iter(ablation.runs)) == DEFAULT
        recipes = [run.recipe.model_dump_json(exclude={"name"}) for run in ablation.runs.values()]
        assert len(set(recipes)) == len(recipes)

    def test_unets_that_differ_in_their_bounds_only(
        self, dense: Bundle, scores: dict[str, Scores]
    ) -> None:
        unet = {"widths": [4, 6], "blocks": 1}
        recipe = make_recipe(**ONE_RUN | {"extractors": [unet, {**unet, "bounds": "data"}]})
        assert list(Ablation(recipe, dense, scores).runs) == [
            DEFAULT,
            "extractor-unet-4-6-x1-data",
        ]

    def test_selectors_share_the_density_of_the_default(
        self, dense: Bundle, scores: dict[str, Scores]
    ) -> None:
        ablation = Ablation(make_recipe(), dense, scores)
        assert 0.05 < ablation.density < 0.95
        magnitude = ablation.runs["selector-magnitude"].recipe.selector
        assert magnitude is not None
        assert magnitude.kind == "magnitude"
        found = scores["magnitude"].density_at(magnitude.threshold)
        assert found == pytest.approx(ablation.density, abs=0.01)
        random = ablation.runs["selector-random"].recipe.selector
        assert random is not None
        assert random.kind == "random"
        assert random.density == ablation.density

    def test_a_default_outside_the_choices_is_a_row_all_the_same(
        self, dense: Bundle, scores: dict[str, Scores]
    ) -> None:
        choices = {"inputs": [["rgb"]], "extractors": [], "ensemblers": ["direct"]}
        tables = Ablation(make_recipe(**choices), dense, scores).tables
        for table in tables[2:]:
            assert [row.run for row in table.rows].count(DEFAULT) == 1

    def test_features_that_the_dense_model_lacks(
        self, tmp_path: Path, scores: dict[str, Scores]
    ) -> None:
        bundle = make_dense(tmp_path, features=False)
        with pytest.raises(
            ConfigurationError, match=r"expected dense\.features in foreign for sel"
        ):
            Ablation(make_recipe(), bundle, scores)
        fitting = make_recipe(selectors=["entropy"], inputs=[["rgb"]])
        assert len(Ablation(fitting, bundle, scores).runs) == 11

    def test_a_default_by_another_selector(self, dense: Bundle, scores: dict[str, Scores]) -> None:
        other = REFINER | {"selector": {"kind": "random", "density": 0.5}}
        with pytest.raises(ConfigurationError, match="selects by entropy, got random"):
            Ablation(make_recipe(refiner=other), dense, scores)


@pytest.fixture(scope="module")
def folder(dense: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a finished ablation with all tables."""
    root = tmp_path_factory.mktemp("ablation")
    (root / "recipe.yaml").write_text(yaml.safe_dump({**FIELDS, "dense_full": str(dense.folder)}))
    command = ["ablate", str(root / "recipe.yaml"), "--bundle", str(dense.folder)]
    assert main([*command, "--out", str(root / "out")]) == 0
    return root / "out"


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ({"threshold_nats": 1.0, "max_pixels": 50}, "without pixel budget.* got max_pixels: 50"),
        ({"threshold_nats": 2.3978}, "selects some pixels, got 2.3978 nats"),
    ],
)
def test_a_default_that_tables_cannot_be_held_against(
    dense: Bundle, scores: dict[str, Scores], selector: dict[str, float], message: str
) -> None:
    recipe = make_recipe(refiner=REFINER | {"selector": selector})
    with pytest.raises(ConfigurationError, match=message):
        Ablation(recipe, dense, scores)


class TestStudy:
    def test_every_row_is_measured(self, folder: Path) -> None:
        rows = json.loads((folder / "tables.json").read_text())
        assert len(rows) == 21
        assert all(row["miou"] is not None for row in rows)
        by_selector = {row["Selector"]: row for row in rows if row["table"] == "5a"}
        assert by_selector["oracle"]["precision"] == 100.0
        assert by_selector["oracle"]["recall"] == 100.0
        for kind in ("random", "magnitude", "learnable"):
            density = by_selector["entropy"]["density"]
            assert by_selector[kind]["density"] == pytest.approx(density, abs=5.0)
        densities = [row["density"] for row in rows if row["table"] == "5b"]
        assert densities == sorted(densities)
        assert densities[-1] == 100.0

    def test_markdown(self, folder: Path) -> None:
        text = (folder / "tables.md").read_text()
        assert [line for line in text.splitlines() if line.startswith("## ")] == [
            "## Table 5a: Pixel selector",
            "## Table 5b: Entropy threshold",
            "## Table 5c: Input",
            "## Table 5d: Extractor",
            "## Table 5e: Ensembler",
            "## Table 8: Classes",
        ]
        assert "| - |" not in text.split("## Table 8")[0]
        assert [line.split(" | ")[0] for line in text.split("## Table 8")[1].splitlines()[4:]] == [
            "| dense-low",
            "| refined",
            "| dense-full",
        ]

    def test_done_runs_are_not_trained_again(
        self, folder: Path, dense: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tables = (folder / "tables.md").read_text()
        recipe = make_recipe(dense_full=str(dense.folder))
        (folder / "inputs-rgb" / "scores.json").unlink()
        trained = []

        def train(recipe: Any, bundle: Bundle, run: Path, *, resume: bool) -> Bundle:
            trained.append(run.name)
            return Bundle.open(run / "bundle")

        monkeypatch.setattr(study, "train_refiner", train)
        again = run_ablation(recipe, dense, folder)
        assert trained == ["inputs-rgb"]
        scores = [line for line in tables.splitlines() if not line.startswith("| yes")]
        # Only the times of the run that was evaluated again may differ.
        assert set(scores) <= set(again.splitlines())

    def test_the_smallest_recipe_goes_on_and_notices_another_start(
        self, folder: Path, dense: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No bundle of dense-full; the refiner starts from one that is trained anew in place."""
        start = shutil.copytree(folder / DEFAULT / "bundle", tmp_path / "start")
        monkeypatch.setattr(study, "train_refiner", lambda *_, **__: Bundle.open(start))
        recipe = make_recipe(**ONE_RUN, refiner=REFINER | {"start_from": str(start)})
        first = run_ablation(recipe, dense, tmp_path / "out")
        assert run_ablation(recipe, dense, tmp_path / "out") == first
        note = start / "bundle.yaml"
        note.write_text(f"{note.read_text()}# trained anew\n", encoding="utf-8")
        with pytest.raises(ConfigurationError, match="of another recipe, model or data"):
            run_ablation(recipe, dense, tmp_path / "out")

    def test_a_mistake_in_the_recipe_does_not_keep_the_folder(
        self, dense: Bundle, tmp_path: Path
    ) -> None:
        many = {"threshold_nats": 1.0, "max_pixels": 9}
        recipe = make_recipe(refiner=REFINER | {"selector": many})
        with pytest.raises(ConfigurationError, match="without pixel budget"):
            run_ablation(recipe, dense, tmp_path / "out")
        assert not any((tmp_path / "out").iterdir())

    def test_classes_are_compared_before_anything_is_trained(
        self, dense: Bundle, tmp_path: Path
    ) -> None:
        other = make_dense(tmp_path, names=CLASS_NAMES[::-1])
        with pytest.raises(ConfigurationError, match="data with the model's classes"):
            run_ablation(make_recipe(**ONE_RUN), other, tmp_path / "out")
        beside = make_recipe(**ONE_RUN, dense_full=str(other.folder))
        with pytest.raises(ConfigurationError, match="full-resolution bundle with the bundle's"):
            run_ablation(beside, dense, tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())

    def test_a_file_where_the_folder_should_be(self, dense: Bundle, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("x")
        with pytest.raises(ConfigurationError, match="expected a folder that can be written to"):
            run_ablation(make_recipe(), dense, tmp_path / "out")

    def test_a_folder_of_another_recipe_is_refused(self, folder: Path, dense: Bundle) -> None:
        with pytest.raises(ConfigurationError, match="holds an ablation of another recipe"):
            run_ablation(make_recipe(limit=1), dense, folder)
