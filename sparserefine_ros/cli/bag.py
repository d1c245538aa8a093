# SPDX-License-Identifier: Apache-2.0
"""`sparserefine bag`, and the executable `evaluate_bag`."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from sparserefine_ros.cli.options import (
    BUNDLE_HELP,
    DEFAULT_BUNDLE,
    Commands,
    add_pipeline_options,
    open_bundle,
    pipeline_options,
)


def add_bag(commands: Commands[argparse.ArgumentParser]) -> None:
    """Recordings: write, evaluate, merge, replay."""
    parser = commands.add_parser("bag", help="write, evaluate or replay recordings (rosbag2)")
    actions = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_write(actions)
    _add_evaluate(actions)
    _add_merge(actions)
    _add_replay(actions)


def _add_write(actions: Commands[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser("write", help="make a bag of pictures")
    parser.add_argument(
        "source", nargs="?", help="image, folder, video, or street[:SEED][:WIDTHxHEIGHT]"
    )
    parser.add_argument("--data", help="a labelled data set instead, KIND:ROOT")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the bag")
    parser.add_argument("--rate", type=float, default=10.0, help="pictures per second")
    parser.add_argument("--limit", type=int, default=0, help="pictures at most; 0 for all")
    parser.add_argument("--labels", action="store_true", help="write the labels of --data too")
    parser.add_argument("--compressed", action="store_true", help="as CompressedImage")
    parser.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap")
    parser.add_argument("--compression", choices=("none", "zstd"), default="none")
    parser.set_defaults(command=_write)


def _write(options: argparse.Namespace) -> None:
    from sparserefine_ros.bags.record import RecordOptions, record_dataset, record_source
    from sparserefine_ros.data.datasets import open_dataset
    from sparserefine_ros.errors import ConfigurationError
    from sparserefine_ros.sources import open_source

    if (options.source is None) == (options.data is None):
        raise ConfigurationError("expected either a source or --data KIND:ROOT")
    how = RecordOptions(
        rate_hz=options.rate,
        limit=options.limit,
        labels=options.labels,
        compressed=options.compressed,
        storage=options.storage,
        compression=options.compression,
    )
    if options.data is not None:
        count = record_dataset(open_dataset(options.data, options.split), options.out, how)
    else:
        count = record_source(open_source(options.source), options.out, how)
    print(f"{count} pictures written to {options.out}")


def _add_evaluate(actions: Commands[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser("evaluate", help="run a bundle on bags and score it")
    parser.add_argument("bag", nargs="+", type=Path, help="folder of a bag, or .mcap or .db3 file")
    parser.add_argument(
        "-o", "--out", type=Path, help="folder for the results; default: BAG_results"
    )
    parser.add_argument("--image-topic", help="default: the only image topic")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--label-topic", help="topic of label images with the pictures' stamps")
    labels.add_argument("--labels", type=Path, help="folder of label images, see docs/bags.md")
    parser.add_argument("--no-maps", action="store_true", help="do not write the bag of maps")
    parser.add_argument("--pictures", type=int, default=6, help="frames shown in the report (6)")
    parser.add_argument("--limit", type=int, default=0, help="the first messages; 0 for all")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="only part I of N parts")
    parser.add_argument("--jobs", type=int, default=1, help="bags evaluated at the same time")
    parser.add_argument(
        "--streams", type=int, default=0, metavar="N",
        help="pictures of a bag segmented at the same time, on a share of the cores each; "
        "0 for as many as keep the cores busy",
    )  # fmt: skip
    add_pipeline_options(parser)
    parser.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from sparserefine_ros.bags.batch import evaluate_bags, summarise
    from sparserefine_ros.bags.report import PAGE
    from sparserefine_ros.bags.results import BagOptions
    from sparserefine_ros.evaluation.subset import Subset, parse_shard
    from sparserefine_ros.evaluation.table import format_table

    what = BagOptions(
        image_topic=options.image_topic,
        label_topic=options.label_topic,
        label_folder=options.labels,
        subset=Subset(options.limit, *parse_shard(options.shard)),
        maps=not options.no_maps,
        pictures=options.pictures,
        streams=options.streams,
    )
    bundle, how = open_bundle(options), pipeline_options(options)
    out = options.out or Path(f"{_name_of(options.bag[0])}_results")
    folders = evaluate_bags(options.bag, out, bundle, how, what, jobs=options.jobs)
    if len(folders) > 1:
        print(format_table(summarise(folders, out)))
    for folder in folders:
        print(_describe(folder))
        print(f"report written to {folder / PAGE}")


def _name_of(bag: Path) -> str:
    """A folder's name may hold dots, of a file they begin the suffix."""
    path = bag.resolve()
    return path.name if path.is_dir() else re.sub(r"\.(mcap|db3)(\.zstd)?$", "", path.name)


def _describe(folder: Path) -> str:
    """A bag's results in one line."""
    import json

    from sparserefine_ros.bags.report import METRICS, TIMING

    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    timing = json.loads((folder / TIMING).read_text(encoding="utf-8"))
    scores = metrics["scores"]
    ious = [
        f"mean IoU {name} {part['miou']:.2%}"
        for name, part in (scores["variants"].items() if scores else ())
    ]
    messages, labelled = metrics["messages"], metrics["labelled_frames"]
    parts = [
        f"{metrics['bag']}: {metrics['frames']} of {messages['announced']} pictures",
        *([f"labels for {labelled} of them"] if 0 < labelled < metrics["frames"] else []),
        *ious,
        f"refined {metrics['refined_share']:.1%}",
        f"mean entropy {metrics['mean_entropy_nats']:.3f} nats",
        f"{timing['frames_per_second']:.1f} pictures/s",
        *metrics["damage"],
    ]
    return ", ".join(parts)


def _add_merge(actions: Commands[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser("merge", help="join the results of several bags")
    parser.add_argument("results", nargs="+", type=Path, help="folders that evaluate wrote")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for summary.json")
    parser.set_defaults(command=_merge)


def _merge(options: argparse.Namespace) -> None:
    from sparserefine_ros.bags.batch import SUMMARY, summarise
    from sparserefine_ros.evaluation.table import format_table

    print(format_table(summarise(options.results, options.out)))
    print(f"summary written to {options.out / SUMMARY}")


def _add_replay(actions: Commands[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser("replay", help="play a bag through the node and time it")
    parser.add_argument("bag", type=Path, help="folder of a bag, or .mcap or .db3 file")
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE, help=BUNDLE_HELP)
    parser.add_argument("--image-topic", help="default: the only image topic")
    parser.add_argument("--rate", type=float, default=0.0, help="Hz; 0: as it was recorded")
    parser.add_argument("--seconds", type=float, default=0.0, help="at most; 0: to the end")
    parser.add_argument("--loop", action="store_true", help="start again at the end")
    parser.add_argument(
        "--clock", action="store_true", help="keep the stamps, publish /clock, use it in the node"
    )
    parser.add_argument(
        "-p", "--param", action="append", default=[], metavar="NAME:=VALUE",
        help="a parameter of the node, such as latency_budget_ms:=80.0; may be given several times",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.set_defaults(command=_replay)


def _replay(options: argparse.Namespace) -> None:
    from sparserefine_ros.files import prepare_file, write_text_whole
    from sparserefine_ros.ros.replay import ReplayOptions, replay_bag

    if options.json:
        prepare_file(options.json)
    report = replay_bag(
        options.bag,
        options.bundle,
        ReplayOptions(
            image_topic=options.image_topic,
            rate_hz=options.rate,
            seconds=options.seconds,
            loop=options.loop,
            clock=options.clock,
            parameters=tuple(options.param),
        ),
    )
    text = report.to_json()
    print(text, end="")
    if options.json:
        write_text_whole(options.json, text)


def evaluate_bag() -> int:
    """`evaluate_bag BAG ...` is `sparserefine bag evaluate BAG ...`."""
    from sparserefine_ros.cli import main

    return main(["bag", "evaluate", *sys.argv[1:]])
