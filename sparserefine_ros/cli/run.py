# SPDX-License-Identifier: Apache-2.0
"""`sparserefine run` and `demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparserefine_ros.cli.options import (
    BUNDLE_HELP,
    DEFAULT_BUNDLE,
    Commands,
    add_pipeline_options,
    open_bundle,
    pipeline_options,
)


def add_run(commands: Commands[argparse.ArgumentParser]) -> None:
    """Segment pictures without ROS."""
    parser = commands.add_parser("run", help="segment pictures without ROS")
    parser.add_argument("source", help="image, folder, video, or street[:SEED][:WIDTHxHEIGHT]")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("out"), help="folder for results (out)"
    )
    parser.add_argument("--limit", type=int, default=0, help="frames at most; 0 (default): all")
    add_pipeline_options(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from sparserefine_ros.run import run_source

    run_source(
        open_bundle(options),
        pipeline_options(options),
        options.source,
        options.out,
        limit=options.limit,
    )


def add_demo(commands: Commands[argparse.ArgumentParser]) -> None:
    """Camera node and segmentation node together."""
    parser = commands.add_parser("demo", help="camera node and segmentation node over ROS 2")
    parser.add_argument(
        "source", nargs="?", default="street", help="image, folder, video or street (default)"
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("out"), help="folder for results (out)"
    )
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE, help=BUNDLE_HELP)
    parser.add_argument("--frames", type=int, default=0, help="frames at most; 0 (default): all")
    parser.add_argument("--rate", type=float, default=5.0, help="frames per second (5)")
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
