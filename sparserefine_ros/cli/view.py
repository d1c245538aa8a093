# SPDX-License-Identifier: Apache-2.0
"""`sparserefine view`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparserefine_ros.cli.options import (
    Commands,
    add_pipeline_options,
    open_bundle,
    pipeline_options,
)
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.view.serve import DEFAULT_PORT, free_port, serve_until_interrupted

RECORDING_SUFFIX = ".rrd"


def add_view(commands: Commands[argparse.ArgumentParser]) -> None:
    """Results in the Rerun viewer, on the desktop or in a browser."""
    parser = commands.add_parser("view", help="record results for the Rerun viewer, or serve them")
    parser.add_argument(
        "source",
        help="image, folder, video, street[:SEED][:WIDTHxHEIGHT] or bag; or an .rrd to serve",
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("view.rrd"), help="the recording (view.rrd)"
    )
    parser.add_argument("--image-topic", help="of a bag; default: its only image topic")
    parser.add_argument("--limit", type=int, default=0, help="frames at most; 0 for all")
    parser.add_argument("--serve", action="store_true", help="show it in a browser, until Ctrl-C")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="of the page; 0 for any")
    add_pipeline_options(parser)
    parser.set_defaults(command=_view)


def _view(options: argparse.Namespace) -> None:
    from sparserefine_ros.view.view import record_view

    recorded = Path(options.source)
    if recorded.suffix == RECORDING_SUFFIX:
        serve_until_interrupted(recorded, port=free_port(options.port))
        return
    if options.out.suffix != RECORDING_SUFFIX:
        raise ConfigurationError(
            f"expected --out to end in {RECORDING_SUFFIX}, by which the viewer knows recordings, "
            f"got {options.out}"
        )
    # Rather now than when everything is recorded.
    port = free_port(options.port) if options.serve else 0
    count = record_view(
        open_bundle(options),
        pipeline_options(options),
        options.source,
        options.out,
        image_topic=options.image_topic,
        limit=options.limit,
    )
    print(f"{count} frames, {options.out.stat().st_size / 1e6:.1f} MB in {options.out}")
    if options.serve:
        serve_until_interrupted(options.out, port=port)
    else:
        print(f"look at it: rerun {options.out}")
        print(f"in a browser: sparserefine view {options.out}")
