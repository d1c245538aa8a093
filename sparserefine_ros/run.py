# SPDX-License-Identifier: Apache-2.0
"""Segment pictures, folders, videos or procedural streets without ROS."""

from __future__ import annotations

import contextlib
import sys
from itertools import islice
from pathlib import Path
from typing import Final

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import ConfigurationError, ImageError
from sparserefine_ros.files import expanded
from sparserefine_ros.outputs import SUMMARIES, ResultWriter
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import Map, Prediction
from sparserefine_ros.sources import is_street, open_source

_WANTED = frozenset({Map.LABELS, Map.ENTROPY, Map.REFINED})

# Frames taken from an endless source, such as a street, when no limit is given.
ENDLESS_LIMIT: Final = 30


def run_source(
    bundle: Bundle, options: PipelineOptions, source: str, out: Path, *, limit: int = 0
) -> None:
    """Segment every frame of a source and write the results to `out`.

    Pictures of a folder that cannot be read are told and left out.

    Args:
        bundle: the model.
        options: how it is run.
        source: image, folder, video or street, see `sparserefine_ros.sources.open_source`.
        out: folder for the results, see `sparserefine_ros.outputs.ResultWriter`.
        limit: frames at most; 0 for all (30 of an endless source).

    Raises:
        ImageError: the source, or every picture in it, cannot be read.
        ConfigurationError: a negative limit, or results would replace what is read.
    """
    unreadable: list[ImageError] = []

    def leave_out(err: ImageError) -> None:
        unreadable.append(err)
        print(f"left out: {err}", file=sys.stderr, flush=True)

    frames = open_source(source, leave_out)
    _check_folder(source, out)
    limit = frame_limit(limit, frames.length)
    expected = min(filter(None, (frames.length, limit)))
    pipeline = Pipeline(bundle, options)
    writer = ResultWriter(out, bundle, video_fps=frames.fps, expected=expected)
    with contextlib.closing(writer):
        for frame in islice(frames, limit or None):
            prediction = pipeline(frame.image, _WANTED)
            assert prediction.labels is not None
            assert prediction.entropy is not None
            assert prediction.refined is not None
            writer.add(
                frame.name,
                frame.image,
                prediction.labels,
                prediction.entropy,
                prediction.refined,
            )
            print(f"{frame.name}: {describe(prediction)}", flush=True)
    if writer.frames == 0 and unreadable:
        raise unreadable[-1]
    left_out = f", {len(unreadable)} left out" if unreadable else ""
    print(
        f"{writer.frames} frames{left_out}, results in {out.resolve()}; "
        "look at contact_sheet.jpg first"
    )


def _check_folder(source: str, out: Path) -> None:
    """See that no result replaces a picture."""
    if is_street(source):
        return
    read = expanded(source).resolve()
    replaced = out.resolve() == read if read.is_dir() else (out / read.name).resolve() == read
    if replaced and (read.is_dir() or read.name in SUMMARIES):
        raise ConfigurationError(
            f"expected a folder where no result can replace {read}, got {out}; choose another"
        )


def frame_limit(limit: int, length: int | None) -> int:
    """Frames to take at most, 0 for all, of a source of so many; None for an endless one.

    Raises:
        ConfigurationError: a negative limit.
    """
    if limit < 0:
        raise ConfigurationError(f"expected a limit of 0 (all) or more frames, got {limit}")
    return ENDLESS_LIMIT if length is None and limit == 0 else min(limit, sys.maxsize)


def describe(prediction: Prediction) -> str:
    """One line: size, refined share, time of each stage."""
    stages = ", ".join(f"{name} {ms:.0f}" for name, ms in prediction.times.milliseconds.items())
    return (
        f"{prediction.size[1]} x {prediction.size[0]}, refined {prediction.refined_share:.1%}"
        f"{' (budget hit)' if prediction.budget_hit else ''}"
        f"{f' ({prediction.unrefined})' if prediction.unrefined else ''}, "
        f"{prediction.times.total_ms:.0f} ms ({stages})"
    )
