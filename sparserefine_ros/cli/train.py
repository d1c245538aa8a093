# SPDX-License-Identifier: Apache-2.0
"""`sparserefine train` and `ablate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sparserefine_ros.cli.options import Commands, open_bundle

if TYPE_CHECKING:
    from sparserefine_ros.bundle import Bundle
    from sparserefine_ros.configuration import Record

R = TypeVar("R", bound="Record")


def add_train(commands: Commands[argparse.ArgumentParser]) -> None:
    """Train a dense network, a refiner or a selector."""
    parser = commands.add_parser("train", help="train a dense network, a refiner or a selector")
    parser.add_argument("kind", choices=("dense", "refiner", "selector"), help="what to train")
    parser.add_argument("recipe", type=Path, help="YAML recipe, see config/recipes/")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and bundle")
    parser.add_argument("--bundle", help="refiner, selector: bundle with the dense model")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.set_defaults(command=_train)


def _train(options: argparse.Namespace) -> None:
    from sparserefine_ros.training.checkpoint import LAST
    from sparserefine_ros.training.processes import is_main_process

    if options.resume and is_main_process() and not (options.out / LAST).exists():
        print(f"{options.out} holds no run to resume: a new one begins", file=sys.stderr)
    try:
        bundle = _train_kind(options)
    except KeyboardInterrupt:
        if is_main_process():
            done = (options.out / LAST).exists()
            how = "with --resume it goes on after the last epoch" if done else "no epoch was done"
            print(f"{how} ({options.out})", file=sys.stderr)
        raise
    if is_main_process():
        print(f"bundle {bundle.name} at {bundle.folder}")
        for key, value in bundle.spec.training.items():
            shown = ", ".join(map(str, value)) if isinstance(value, tuple | list) else value
            print(f"  {key}: {shown}")
        print(f"score it: sparserefine evaluate --bundle {bundle.folder} --data KIND:ROOT")


def _train_kind(options: argparse.Namespace) -> Bundle:
    from sparserefine_ros.errors import ConfigurationError

    if options.kind == "dense":
        if options.bundle is not None:
            raise ConfigurationError(
                "training a dense network takes no --bundle; to start from the dense model of one, "
                "name it as start_from in the recipe"
            )
        return _train_dense(options)
    if options.bundle is None:
        raise ConfigurationError(f"training a {options.kind} needs --bundle with the dense model")
    return _train_refiner(options) if options.kind == "refiner" else _train_selector(options)


def _train_dense(options: argparse.Namespace) -> Bundle:
    from sparserefine_ros.training.dense import train_dense
    from sparserefine_ros.training.recipe import DenseRecipe

    return train_dense(_recipe(options, DenseRecipe), options.out, resume=options.resume)


def _train_refiner(options: argparse.Namespace) -> Bundle:
    from sparserefine_ros.training.recipe import RefinerRecipe
    from sparserefine_ros.training.refiner import train_refiner

    recipe = _recipe(options, RefinerRecipe)
    return train_refiner(recipe, open_bundle(options), options.out, resume=options.resume)


def _train_selector(options: argparse.Namespace) -> Bundle:
    from sparserefine_ros.training.recipe import SelectorRecipe
    from sparserefine_ros.training.selector import train_selector

    recipe = _recipe(options, SelectorRecipe)
    return train_selector(recipe, open_bundle(options), options.out, resume=options.resume)


def add_ablate(commands: Commands[argparse.ArgumentParser]) -> None:
    """What each choice of the method is worth."""
    parser = commands.add_parser("ablate", help="train and compare the choices of the method")
    parser.add_argument("recipe", type=Path, help="YAML recipe, see config/recipes/")
    parser.add_argument("--bundle", required=True, help="bundle with the dense model")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for runs and tables; an interrupted ablation resumes",
    )
    parser.set_defaults(command=_ablate)


def _ablate(options: argparse.Namespace) -> None:
    from sparserefine_ros.ablation.recipe import AblationRecipe
    from sparserefine_ros.ablation.study import run_ablation

    print(run_ablation(_recipe(options, AblationRecipe), open_bundle(options), options.out))


def _recipe(options: argparse.Namespace, kind: type[R]) -> R:
    from sparserefine_ros.configuration import read_yaml
    from sparserefine_ros.errors import ConfigurationError

    return read_yaml(options.recipe, kind, ConfigurationError)
