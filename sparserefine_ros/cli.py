# SPDX-License-Identifier: Apache-2.0
"""`sparserefine`: run, demo, train, evaluate, bench, bundle.

Each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sparserefine_ros.errors import SparseRefineError

if TYPE_CHECKING:
    from sparserefine_ros.bundle import Bundle
    from sparserefine_ros.training.recipe import TrainingRecipe

R = TypeVar("R", bound="TrainingRecipe")

DEFAULT_BUNDLE = "street_small"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 failed, 2 wrong usage."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options) or 0)
    except SparseRefineError as err:
        print(f"sparserefine: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparserefine", description="Semantic segmentation by sparse refinement."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_demo(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_bench(commands)
    _add_bundle(commands)
    return parser


Commands = argparse._SubParsersAction  # argparse has no public name for it


def _add_run(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("run", help="segment pictures without ROS")
    parser.add_argument("source", help="image, folder, video, or street[:SEED][:WIDTHxHEIGHT]")
    parser.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder for results")
    parser.add_argument("--limit", type=int, default=0, help="frames at most; 0 for all")
    _add_pipeline_options(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from sparserefine_ros.run import run_source

    run_source(
        _open_bundle(options), _options(options), options.source, options.out, limit=options.limit
    )


def _add_demo(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("demo", help="camera node and segmentation node over ROS 2")
    parser.add_argument(
        "source", nargs="?", default="street", help="image, folder, video or street (default)"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder for results")
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE, help="bundle folder or shipped name")
    parser.add_argument("--frames", type=int, default=0, help="frames at most; 0 for all")
    parser.add_argument("--rate", type=float, default=5.0, help="frames per second")
    parser.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    from sparserefine_ros.ros.demo import run_demo

    return run_demo(
        source=options.source,
        bundle=options.bundle,
        out=options.out,
        frames=options.frames,
        rate_hz=options.rate,
    )


def _add_train(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("train", help="train a dense network, a refiner or a selector")
    parser.add_argument("kind", choices=("dense", "refiner", "selector"), help="what to train")
    parser.add_argument("recipe", type=Path, help="YAML recipe, see config/recipes/")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and bundle")
    parser.add_argument("--bundle", help="refiner, selector: bundle with the dense model")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.set_defaults(command=_train)


def _train(options: argparse.Namespace) -> None:
    if options.kind == "dense":
        bundle = _train_dense(options)
    elif options.bundle is None:
        from sparserefine_ros.errors import ConfigurationError

        raise ConfigurationError(f"training a {options.kind} needs --bundle with the dense model")
    else:
        bundle = _train_refiner(options) if options.kind == "refiner" else _train_selector(options)
    print(f"bundle {bundle.name} at {bundle.folder}")
    for key, value in bundle.spec.training.items():
        print(f"  {key}: {value}")


def _train_dense(options: argparse.Namespace) -> Bundle:
    from sparserefine_ros.training.dense import train_dense
    from sparserefine_ros.training.recipe import DenseRecipe

    return train_dense(_recipe(options, DenseRecipe), options.out, resume=options.resume)


def _train_refiner(options: argparse.Namespace) -> Bundle:
    from sparserefine_ros.training.recipe import RefinerRecipe
    from sparserefine_ros.training.refiner import train_refiner

    recipe = _recipe(options, RefinerRecipe)
    return train_refiner(recipe, _open_bundle(options), options.out, resume=options.resume)


def _train_selector(options: argparse.Namespace) -> Bundle:
    from sparserefine_ros.training.recipe import SelectorRecipe
    from sparserefine_ros.training.selector import train_selector

    recipe = _recipe(options, SelectorRecipe)
    return train_selector(recipe, _open_bundle(options), options.out, resume=options.resume)


def _recipe(options: argparse.Namespace, kind: type[R]) -> R:
    from sparserefine_ros.configuration import read_yaml
    from sparserefine_ros.errors import ConfigurationError

    return read_yaml(options.recipe, kind, ConfigurationError)


def _add_evaluate(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("evaluate", help="accuracy on labelled data")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data",
        help="KIND:ROOT, as camvid:ROOT, or street[:SEED[:COUNT[:WIDTHxHEIGHT]]]; "
        "see docs/datasets.md",
    )
    source.add_argument(
        "--merge", nargs="+", type=Path, metavar="JSON", help="join the scores of parts instead"
    )
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument(
        "--dense-full",
        nargs="?",
        const="",
        metavar="BUNDLE",
        help="also run the dense model alone at full resolution; or that of another bundle, "
        "trained for it",
    )
    parser.add_argument("--limit", type=int, default=0, help="the first frames only; 0 for all")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="only part I of N parts")
    parser.add_argument("--processes", type=int, default=1, help="processes to divide frames among")
    parser.add_argument("--json", type=Path, help="write the scores to this file")
    parser.add_argument("--out", type=Path, help="folder for report.html, scores.json, scores.csv")
    parser.add_argument("--pictures", type=int, default=12, help="frames shown in the report")
    _add_pipeline_options(parser)
    parser.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from sparserefine_ros.evaluation.evaluation import Evaluation
    from sparserefine_ros.evaluation.report import prepare_folder, write_report
    from sparserefine_ros.evaluation.storage import read_json, write_json
    from sparserefine_ros.evaluation.table import format_table

    for folder in filter(None, (options.out, options.json and options.json.parent)):
        prepare_folder(folder)
    if options.merge:
        evaluation = Evaluation.merged([read_json(path) for path in options.merge])
        gallery = None
    else:
        evaluation, gallery = _evaluate_data(options)
    print(format_table(evaluation))
    if options.json:
        write_json(evaluation, options.json)
        print(f"scores written to {options.json}")
    if options.out:
        print(f"report written to {write_report(evaluation, options.out, gallery)}")


def _evaluate_data(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    """Run the frames; return the evaluation and what it takes to draw some of them."""
    from sparserefine_ros.bundle import Bundle
    from sparserefine_ros.data.datasets import open_dataset
    from sparserefine_ros.evaluation.evaluate import at_full_resolution, evaluate
    from sparserefine_ros.evaluation.pictures import Gallery
    from sparserefine_ros.evaluation.subset import Subset, parse_shard
    from sparserefine_ros.resources import find_bundle

    shard, shards = parse_shard(options.shard)
    dataset = open_dataset(options.data, options.split)
    bundle, how = _open_bundle(options), _options(options)
    gallery = Gallery(bundle, dataset, how, options.pictures)
    dense_full = None
    if options.dense_full is not None:
        named = options.dense_full
        dense_full = Bundle.open(find_bundle(named)) if named else at_full_resolution(bundle)
    evaluation = evaluate(
        bundle,
        dataset,
        how,
        dense_full=dense_full,
        data=f"{options.data}, {options.split}",
        subset=Subset(options.limit, shard, shards),
        processes=options.processes,
    )
    return evaluation, gallery


def _add_bench(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("bench", help="time the pipeline or the node")
    parser.add_argument("what", choices=("pipeline", "node"), help="stages, or camera to labels")
    parser.add_argument("--size", action="append", metavar="WIDTHxHEIGHT", help="may be repeated")
    parser.add_argument("--frames", type=int, default=30, help="timed frames, at least 20")
    parser.add_argument("--warmup", type=int, default=5, help="frames before timing")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    _add_pipeline_options(parser)
    parser.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> None:
    from sparserefine_ros.evaluation.bench import parse_size, write_figures

    sizes = [parse_size(text) for text in options.size or ("480x360", "2048x1024")]
    bundle, how = _open_bundle(options), _options(options)
    counts = {"frames": max(20, options.frames), "warmup": options.warmup}
    if options.what == "pipeline":
        from sparserefine_ros.evaluation.bench import bench_pipeline

        figures = [bench_pipeline(bundle, how, size, **counts) for size in sizes]
    else:
        from sparserefine_ros.ros.bench import bench_node

        figures = [bench_node(bundle, how, size, **counts) for size in sizes]
    for figure in figures:
        print(figure.to_table())
    if options.json:
        write_figures(figures, options.json)
        print(f"figures written to {options.json}")


def _add_bundle(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("bundle", help="look after model bundles")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    verify = actions.add_parser("verify", help="check fields, files and digests, load the models")
    seal = actions.add_parser("seal", help="write the digests of hand-placed files")
    for action, command in ((verify, _verify), (seal, _seal)):
        action.add_argument("bundle", help="bundle folder")
        action.set_defaults(command=command)


def _verify(options: argparse.Namespace) -> None:
    from sparserefine_ros.pipeline import Pipeline

    bundle = _open_bundle(options)
    pipeline = Pipeline(bundle)
    print(f"{bundle.name}: {len(bundle.class_names)} classes, digest {bundle.digest}")
    for stage, description in pipeline.backends.items():
        print(f"  {stage}: {description}")


def _seal(options: argparse.Namespace) -> None:
    from sparserefine_ros.bundle import seal_bundle

    bundle = seal_bundle(Path(options.bundle))
    print(f"{bundle.name}: sealed, digest {bundle.digest}")


def _add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE, help="bundle folder or shipped name")
    parser.add_argument("--backend", default="auto", help="engine of the dense model")
    parser.add_argument("--device", default="cpu", help="device of the engines")
    parser.add_argument("--threads", type=int, default=0, help="0 for one per core")
    parser.add_argument("--entropy-threshold", type=float, help="nats; default: the bundle's")
    parser.add_argument("--max-refined-pixels", type=int, help="0: no limit; default: the bundle's")


def _open_bundle(options: argparse.Namespace) -> Bundle:
    from sparserefine_ros.bundle import Bundle
    from sparserefine_ros.resources import find_bundle

    return Bundle.open(find_bundle(options.bundle))


def _options(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from sparserefine_ros.pipeline import PipelineOptions

    return PipelineOptions(
        backend=options.backend,
        device=options.device,
        threads=options.threads,
        entropy_threshold=options.entropy_threshold,
        max_refined_pixels=options.max_refined_pixels,
    )


if __name__ == "__main__":
    sys.exit(main())
