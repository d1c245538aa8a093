# SPDX-License-Identifier: Apache-2.0
"""`sparserefine evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparserefine_ros.cli.options import (
    Commands,
    add_pipeline_options,
    open_bundle,
    pipeline_options,
)

_WITH_MERGE = ("merge", "json", "out", "command")


def add_evaluate(commands: Commands[argparse.ArgumentParser]) -> None:
    """Accuracy on labelled data."""
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
    parser.add_argument("--split", choices=("train", "val"), default="val", help="(val)")
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
    parser.add_argument("--pictures", type=int, default=12, help="frames shown in the report (12)")
    add_pipeline_options(parser)
    parser.set_defaults(command=lambda options: _evaluate(options, parser))


def _evaluate(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from sparserefine_ros.evaluation.evaluation import Evaluation
    from sparserefine_ros.evaluation.report import prepare_report, write_report
    from sparserefine_ros.evaluation.storage import read_json, write_json
    from sparserefine_ros.evaluation.table import format_table
    from sparserefine_ros.files import prepare_file

    if options.merge:
        _refuse_others(options, parser)
    if options.out:
        prepare_report(options.out)
    if options.json:
        prepare_file(options.json)
    if options.merge:
        evaluation = Evaluation.merged([read_json(path) for path in options.merge])
        gallery = None
    else:
        evaluation, gallery = _evaluate_data(options)
    print(format_table(evaluation))
    # The report first: it takes scores that lie in its folder alone for something else.
    if options.out:
        print(f"report written to {write_report(evaluation, options.out, gallery)}")
    if options.json:
        write_json(evaluation, options.json)
        print(f"scores written to {options.json}")


def _refuse_others(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Scores that are joined were taken with their own options."""
    from sparserefine_ros.errors import ConfigurationError

    for name, value in vars(options).items():
        if name not in _WITH_MERGE and value != parser.get_default(name):
            raise ConfigurationError(
                f"expected --merge with --json or --out only, got --{name.replace('_', '-')}; "
                "leave it out, the scores were taken already"
            )


def _evaluate_data(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    """Run the frames; return the evaluation and what it takes to draw some of them."""
    from sparserefine_ros.bundle import Bundle
    from sparserefine_ros.data.datasets import open_dataset
    from sparserefine_ros.evaluation.evaluate import at_full_resolution, evaluate
    from sparserefine_ros.evaluation.pictures import Gallery
    from sparserefine_ros.evaluation.subset import Subset, parse_shard

    shard, shards = parse_shard(options.shard)
    dataset = open_dataset(options.data, options.split)
    bundle, how = open_bundle(options), pipeline_options(options)
    gallery = Gallery(bundle, dataset, how, options.pictures)
    dense_full = None
    if options.dense_full is not None:
        named = options.dense_full
        dense_full = Bundle.named(named) if named else at_full_resolution(bundle)
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
