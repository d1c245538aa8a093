# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparserefine_ros.bundle import Bundle
    from sparserefine_ros.dense.options import EngineOptions
    from sparserefine_ros.pipeline import PipelineOptions

DEFAULT_BUNDLE = "street_small"
BUNDLE_HELP = f"bundle folder or shipped name ({DEFAULT_BUNDLE})"

Commands = argparse._SubParsersAction  # argparse has no public name for it


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """Bundle, engine and selection."""
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE, help=BUNDLE_HELP)
    parser.add_argument(
        "--backend",
        default="auto",
        help="engine of the dense model: auto (default), onnxruntime, onnxruntime_tensorrt, "
        "onnxruntime_tensorrt_rtx, openvino, tensorrt or tensorrt_rtx",
    )
    parser.add_argument(
        "--sparse-backend",
        default="auto",
        help="engine of the sparse refiner: auto (default), compiled, compiled-bfloat16, pytorch, "
        "triton, triton-float16 and others, see docs/gpu.md",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    add_engine_options(parser)
    parser.add_argument(
        "--no-build-engines",
        action="store_true",
        help="fail where a TensorRT engine is not built yet",
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="of each engine; 0 (default): one per core"
    )
    parser.add_argument("--entropy-threshold", type=float, help="nats; default: the bundle's")
    parser.add_argument("--max-refined-pixels", type=int, help="0: no limit; default: the bundle's")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """How engines are made from the dense model."""
    parser.add_argument(
        "--precision", default="model", help="model (its own number types, default), fp16 or bf16"
    )
    parser.add_argument("--engine-cache", type=Path, help="folder of built engines")
    parser.add_argument(
        "--picture-sizes",
        default="",
        metavar="WxH[,WxH,WxH]",
        help="size of the pictures, or smallest, usual and largest, for engines with fixed buffers",
    )
    parser.add_argument(
        "--max-batch", type=int, default=1, help="pictures that the dense model takes at once (1)"
    )


def engine_options(options: argparse.Namespace, *, build: bool = True) -> EngineOptions:
    """What `add_engine_options` parsed."""
    from sparserefine_ros.dense.options import EngineOptions, parse_picture_sizes

    return EngineOptions(
        precision=options.precision,
        cache=options.engine_cache,
        build=build,
        picture_sizes=parse_picture_sizes(options.picture_sizes),
        max_batch=options.max_batch,
    )


def open_bundle(options: argparse.Namespace) -> Bundle:
    """The bundle named by `--bundle`."""
    from sparserefine_ros.bundle import Bundle

    return Bundle.named(options.bundle)


def pipeline_options(options: argparse.Namespace) -> PipelineOptions:
    """What `add_pipeline_options` parsed."""
    from sparserefine_ros.pipeline import PipelineOptions

    return PipelineOptions(
        backend=options.backend,
        sparse_backend=options.sparse_backend,
        device=options.device,
        threads=options.threads,
        engine=engine_options(options, build=not options.no_build_engines),
        entropy_threshold=options.entropy_threshold,
        max_refined_pixels=options.max_refined_pixels,
    )
