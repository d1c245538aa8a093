# SPDX-License-Identifier: Apache-2.0
"""`sparserefine bench`: timings of the pipeline, the node, its rim, and the sparse engines."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparserefine_ros.cli.options import (
    DEFAULT_BUNDLE,
    Commands,
    add_pipeline_options,
    open_bundle,
    pipeline_options,
)

if TYPE_CHECKING:
    from typing import Any

_SIZES = ("480x360", "2048x1024")

_FEWEST_FRAMES = 20


def add_bench(commands: Commands[argparse.ArgumentParser]) -> None:
    """Timings."""
    bench = commands.add_parser("bench", help="time the pipeline, the node or the sparse engines")
    what = bench.add_subparsers(required=True, metavar="WHAT")
    pipeline = what.add_parser("pipeline", help="each stage, at sizes and densities")
    pipeline.add_argument(
        "--density", action="append", type=float, help="share of refined pixels; may be repeated"
    )
    _add_frames(pipeline)
    add_pipeline_options(pipeline)
    pipeline.set_defaults(command=_pipeline)
    node = what.add_parser("node", help="camera to labels, through a running node")
    _add_frames(node)
    add_pipeline_options(node)
    node.set_defaults(command=_node)
    cameras = what.add_parser("cameras", help="several cameras into one node")
    cameras.add_argument("--cameras", type=int, default=2, help="how many")
    cameras.add_argument("--rate", type=float, default=30.0, help="frames per second of each")
    cameras.add_argument("--seconds", type=float, default=120.0, help="how long")
    add_pipeline_options(cameras)
    cameras.set_defaults(command=_cameras)
    rim = what.add_parser("rim", help="conversion and transport of messages")
    rim.add_argument("--frames", type=int, default=30, help="timed messages, at least 20")
    rim.set_defaults(command=_rim)
    deadline = what.add_parser("deadline", help="frames in time while the uncertain area jumps")
    deadline.add_argument("--budget-ms", type=float, required=True, help="deadline of a frame")
    deadline.add_argument(
        "--frames",
        type=int,
        default=300,
        help="how many; the first 20 only teach what a pixel costs",
    )
    add_pipeline_options(deadline)
    deadline.set_defaults(command=_deadline)
    sparse = what.add_parser("sparse", help="the sparse UNet on each engine")
    sparse.add_argument(
        "--bundle", default=DEFAULT_BUNDLE, help="whose dense model draws the masks"
    )
    sparse.add_argument("--unet", action="append", help="bundle, small or reference")
    sparse.add_argument("--density", action="append", type=float, help="share of pixels")
    sparse.add_argument("--engine", action="append", help="an engine, or training")
    sparse.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    sparse.add_argument("--threads", type=int, default=0, help="0 for one per core")
    sparse.set_defaults(command=_sparse)
    for parser in (pipeline, node, cameras, rim, deadline):
        parser.add_argument("--size", action="append", metavar="WIDTHxHEIGHT", help="may repeat")
    for parser in (pipeline, node, cameras, rim, deadline, sparse):
        parser.add_argument("--json", type=Path, help="write the figures to this file")
        parser.set_defaults(command=_prepared(parser.get_default("command")))


def _prepared(bench: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """A benchmark that finds out first whether its figures can be written."""

    def run(options: argparse.Namespace) -> None:
        if options.json:
            from sparserefine_ros.files import prepare_file

            prepare_file(options.json)
        bench(options)

    return run


def _add_frames(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=30, help="timed frames, at least 20")
    parser.add_argument("--warmup", type=int, default=5, help="frames before timing")


def _pipeline(options: argparse.Namespace) -> None:
    from sparserefine_ros.evaluation.bench import bench_pipeline

    bundle, how = open_bundle(options), pipeline_options(options)
    _tell(
        options,
        [
            bench_pipeline(bundle, how, size, density=density, **_counts(options))
            for size in _sizes(options)
            for density in options.density or [None]
        ],
    )


def _node(options: argparse.Namespace) -> None:
    from sparserefine_ros.ros.bench import bench_node

    bundle, how = open_bundle(options), pipeline_options(options)
    sizes = _sizes(options)
    _tell(options, [bench_node(bundle, how, size, **_counts(options)) for size in sizes])


def _cameras(options: argparse.Namespace) -> None:
    from sparserefine_ros.ros.bench_cameras import bench_cameras

    bundle, how = open_bundle(options), pipeline_options(options)
    load = {"cameras": options.cameras, "rate_hz": options.rate, "seconds": options.seconds}
    _tell(options, [bench_cameras(bundle, how, size, **load) for size in _sizes(options)])


def _rim(options: argparse.Namespace) -> None:
    from sparserefine_ros.ros.bench_rim import bench_rim

    messages = _frames(options)
    _tell(options, [bench_rim(size, messages=messages) for size in _sizes(options)])


def _deadline(options: argparse.Namespace) -> None:
    from sparserefine_ros.evaluation.bench_deadline import bench_deadline

    if options.entropy_threshold is not None or options.max_refined_pixels is not None:
        from sparserefine_ros.errors import ConfigurationError

        raise ConfigurationError(
            "expected neither --entropy-threshold nor --max-refined-pixels: the benchmark says "
            "itself what is uncertain, and the deadline how much of it is refined"
        )
    bundle, how = open_bundle(options), pipeline_options(options)
    load = {"budget_ms": options.budget_ms, "frames": options.frames}
    _tell(options, [bench_deadline(bundle, how, size, **load) for size in _sizes(options)])


def _sparse(options: argparse.Namespace) -> None:
    from sparserefine_ros.evaluation.bench_sparse import bench_sparse
    from sparserefine_ros.evaluation.sparse_cases import DENSITIES, UNETS

    figures = bench_sparse(
        open_bundle(options),
        unets=options.unet or UNETS,
        densities=options.density or DENSITIES,
        engines=options.engine,
        device=options.device,
        threads=options.threads,
    )
    _tell(options, [figures])


def _sizes(options: argparse.Namespace) -> list[tuple[int, int]]:
    from sparserefine_ros.evaluation.bench import parse_size

    return [parse_size(text) for text in options.size or _SIZES]


def _counts(options: argparse.Namespace) -> dict[str, int]:
    return {"frames": _frames(options), "warmup": options.warmup}


def _frames(options: argparse.Namespace) -> int:
    if options.frames < _FEWEST_FRAMES:
        from sparserefine_ros.errors import ConfigurationError

        raise ConfigurationError(
            f"expected {_FEWEST_FRAMES} frames or more, for a median that means something, got "
            f"{options.frames}"
        )
    return int(options.frames)


def _tell(options: argparse.Namespace, figures: Sequence[Any]) -> None:
    """Print figures, and write them when asked to."""
    from sparserefine_ros.evaluation.measure import write_figures

    for figure in figures:
        print(figure.to_table())
    if options.json:
        write_figures(figures, options.json)
        print(f"figures written to {options.json}")
