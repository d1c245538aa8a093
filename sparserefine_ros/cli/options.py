# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparserefine_ros.bundle import Bundle
    from sparserefine_ros.pipeline import PipelineOptions

DEFAULT_BUNDLE = "street_small"

Commands = argparse._SubParsersAction  # argparse has no public name for it


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """Bundle, engine and selection."""
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE, help="bundle folder or shipped name")
    parser.add_argument("--backend", default="auto", help="engine of the dense model")
    parser.add_argument("--sparse-backend", default="auto", help="engine of the sparse refiner")
    parser.add_argument("--device", default="cpu", help="device of the engines")
    parser.add_argument("--threads", type=int, default=0, help="0 for one per core")
    parser.add_argument("--entropy-threshold", type=float, help="nats; default: the bundle's")
    parser.add_argument("--max-refined-pixels", type=int, help="0: no limit; default: the bundle's")


def open_bundle(options: argparse.Namespace) -> Bundle:
    """The bundle named by `--bundle`."""
    from sparserefine_ros.bundle import Bundle
    from sparserefine_ros.resources import find_bundle

    return Bundle.open(find_bundle(options.bundle))


def pipeline_options(options: argparse.Namespace) -> PipelineOptions:
    """What `add_pipeline_options` parsed."""
    from sparserefine_ros.pipeline import PipelineOptions

    return PipelineOptions(
        backend=options.backend,
        sparse_backend=options.sparse_backend,
        device=options.device,
        threads=options.threads,
        entropy_threshold=options.entropy_threshold,
        max_refined_pixels=options.max_refined_pixels,
    )
