# SPDX-License-Identifier: Apache-2.0
"""Runs an ablation: trains and evaluates each setting once, and can be stopped at any time.

The folder of an ablation holds `tables.md` and `tables.json`, renewed after each run, and a folder
for each run with its checkpoints, its bundle and, when it is done, its scores.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from typing_extensions import Self

from sparserefine_ros.ablation.recipe import AblationRecipe
from sparserefine_ros.ablation.runs import DEFAULT, Ablation, Run
from sparserefine_ros.ablation.tables import to_markdown, to_values
from sparserefine_ros.ablation.thresholds import measure_scores
from sparserefine_ros.bundle import Bundle
from sparserefine_ros.configuration import Record, read_yaml, write_yaml
from sparserefine_ros.data.datasets import open_dataset
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.evaluate import check_comparable, evaluate
from sparserefine_ros.evaluation.evaluation import Evaluation
from sparserefine_ros.evaluation.storage import read_json, write_json
from sparserefine_ros.evaluation.subset import Subset
from sparserefine_ros.files import prepare_folder, write_text_whole
from sparserefine_ros.pipeline import PipelineOptions
from sparserefine_ros.training.crops import check_classes
from sparserefine_ros.training.recipe import SelectorRecipe
from sparserefine_ros.training.refiner import train_refiner
from sparserefine_ros.training.selector import train_selector
from sparserefine_ros.training.teacher import open_named_bundle

RECIPE_FILE: Final = "recipe.yaml"
SCORES_FILE: Final = "scores.json"


class _Origin(Record):
    """What the runs of a folder depend on.

    Attributes:
        recipe: with environment variables as they stand in it.
        bundle: digest of the dense model's bundle.
        dense_full: digest of the bundle for table 8; None without.
        teacher: digest of the bundle that refiners imitate; None without.
        start: digest of the bundle that refiners start from; None without.
        data: text forms of all data sets, environment variables expanded.
    """

    recipe: AblationRecipe
    bundle: str
    dense_full: str | None = None
    teacher: str | None = None
    start: str | None = None
    data: tuple[str, ...]

    @classmethod
    def of(cls, recipe: AblationRecipe, bundle: Bundle, full: Bundle | None) -> Self:
        refiner = recipe.refiner
        data = (*(s.data for s in refiner.train), refiner.validate_on, recipe.evaluate_on)
        return cls(
            recipe=recipe,
            bundle=bundle.digest,
            dense_full=full.digest if full else None,
            teacher=_digest_of(refiner.teacher),
            start=_digest_of(refiner.start_from),
            data=tuple(map(os.path.expandvars, data)),
        )


def _digest_of(name: str | None) -> str | None:
    return open_named_bundle(name).digest if name else None


def run_ablation(recipe: AblationRecipe, bundle: Bundle, folder: Path) -> str:
    """Train and evaluate whatever is missing in `folder`; return the tables in Markdown.

    Args:
        recipe: the default setting and the choices.
        bundle: the dense model.
        folder: of this ablation; a stopped one goes on from its last checkpoint.

    Raises:
        ConfigurationError: `folder` holds another ablation, or the recipe or its data do not fit
            the bundle.
        SparseRefineError: a training or an evaluation failed.
    """
    full = open_named_bundle(recipe.dense_full) if recipe.dense_full else None
    origin = _Origin.of(recipe, bundle, full)
    _check_folder(folder, origin)
    dataset = open_dataset(recipe.evaluate_on, "val")
    if not (folder / RECIPE_FILE).exists():  # a folder that was claimed has passed
        check_classes(recipe.refiner, bundle.class_names)
    check_comparable(bundle, dataset, full)
    ablation = Ablation(recipe, bundle, measure_scores(bundle, dataset, Subset(recipe.limit)))
    _claim(folder, origin)  # now that the recipe fits: a mistake in it must not keep the folder
    found: dict[str, Evaluation] = {}
    for number, run in enumerate(ablation.runs.values(), 1):
        print(f"run {number}/{len(ablation.runs)}: {run.name}")
        found[run.name] = _result_of(run, ablation, folder / run.name, full)
        write_text_whole(folder / "tables.md", to_markdown(ablation.tables, found))
        values = json.dumps(to_values(ablation.tables, found), indent=2)
        write_text_whole(folder / "tables.json", values + "\n")
    return to_markdown(ablation.tables, found)


def _check_folder(folder: Path, origin: _Origin) -> None:
    """Check that the folder holds these runs, or can."""
    path = folder / RECIPE_FILE
    prepare_folder(folder)
    if path.exists() and read_yaml(path, _Origin, ConfigurationError) != origin:
        raise ConfigurationError(
            f"{folder} holds an ablation of another recipe, model or data, see {path}; "
            "choose another folder"
        )


def _claim(folder: Path, origin: _Origin) -> None:
    """Note in the folder what it holds."""
    path = folder / RECIPE_FILE
    aside = path.with_suffix(".tmp")
    write_yaml(aside, origin, heading="What the runs of this folder depend on")
    aside.replace(path)


def _result_of(run: Run, ablation: Ablation, folder: Path, full: Bundle | None) -> Evaluation:
    """Scores of a run, from its folder when it was done before."""
    scores = folder / SCORES_FILE
    if scores.exists():
        return read_json(scores)
    recipe = ablation.recipe
    dense = _with_learnable(ablation, folder) if run.learnable else ablation.bundle
    bundle = train_refiner(run.recipe, dense, folder, resume=True)
    evaluation = evaluate(
        bundle,
        open_dataset(recipe.evaluate_on, "val"),
        PipelineOptions(),
        dense_full=full if run.name == DEFAULT else None,
        data=f"{recipe.evaluate_on}, val",
        subset=Subset(limit=recipe.limit),
    )
    write_json(evaluation, scores)
    return evaluation


def _with_learnable(ablation: Ablation, folder: Path) -> Bundle:
    """The dense bundle with a selector trained for the density of the default setting."""
    refiner = ablation.recipe.refiner
    recipe = SelectorRecipe(
        name="selector",
        seed=refiner.seed,
        train=refiner.train,
        validate_on=refiner.validate_on,
        schedule=ablation.recipe.selector_schedule or refiner.schedule,
        augmentation=refiner.augmentation,
        density=ablation.density,
    )
    return train_selector(recipe, ablation.bundle, folder / "selector", resume=True)
