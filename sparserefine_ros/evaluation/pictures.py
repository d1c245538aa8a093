# SPDX-License-Identifier: Apache-2.0
"""Pictures of single frames for the report: what the model saw, said, and got wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.data.datasets import IGNORED_LABEL, Sample, SegmentationDataset
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.scores import FrameScore
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import Map, Prediction
from sparserefine_ros.render import draw_changes, draw_entropy, draw_legend, draw_overlay, narrow
from sparserefine_ros.selection import expand_map

LEGEND_FILE: Final = "legend.png"
_DRAWN: Final = re.compile(r"\d{5,}_.*_(image|dense-low|refined|entropy|truth|changes)\.(jpg|png)")

_CHANGES: Final = "changes"
_WIDTH: Final = 640
_WANTED: Final = frozenset({Map.LABELS, Map.DENSE_LABELS, Map.REFINED})


@dataclass(frozen=True)
class Gallery:
    """What it takes to draw frames.

    Attributes:
        bundle: as evaluated.
        dataset: as evaluated.
        options: as evaluated.
        count: frames to draw, the worst first.

    Raises:
        ConfigurationError: the count is negative.
    """

    bundle: Bundle
    dataset: SegmentationDataset
    options: PipelineOptions
    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigurationError(f"expected 0 or more pictures, got {self.count}")


@dataclass(frozen=True)
class FramePictures:
    """The pictures of one frame.

    Attributes:
        frame: its scores.
        files: name of each picture's file, by its caption.
    """

    frame: FrameScore
    files: Mapping[str, str]


def draw_frames(
    gallery: Gallery, frames: Sequence[FrameScore], folder: Path
) -> list[FramePictures]:
    """Run frames again and write their pictures and the legend to `folder`.

    Raises:
        ConfigurationError: a picture cannot be written.
    """
    bundle = gallery.bundle
    pipeline = Pipeline(bundle, gallery.options)
    draw_legend_file(bundle, folder)
    drawn = []
    for frame in tqdm(frames, unit="frame", desc="drawing"):
        sample = gallery.dataset[frame.index]
        truth = sample.labels if bundle.spec.uses_truth() else None
        prediction = pipeline(sample.image, _WANTED, truth)
        drawn.append(draw_frame(frame, sample, prediction, bundle, folder))
    return drawn


def foreign_pictures(folder: Path) -> list[str]:
    """Names in a report's folder of pictures that no report gives; none without the folder."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in names if name != LEGEND_FILE and not _DRAWN.fullmatch(name))


def draw_legend_file(bundle: Bundle, folder: Path) -> None:
    """Write the colours of the classes to `folder`.

    Raises:
        ConfigurationError: the picture cannot be written.
    """
    _write(folder / LEGEND_FILE, draw_legend(bundle.class_names, bundle.palette))


def draw_frame(
    frame: FrameScore, sample: Sample, prediction: Prediction, bundle: Bundle, folder: Path
) -> FramePictures:
    """Write the pictures of one frame to `folder`.

    Args:
        frame: its scores.
        sample: the frame; without any label, the pictures that need them are left out.
        prediction: with labels, dense labels and refined pixels.
        bundle: its classes and colours are used.
        folder: where to write.

    Raises:
        ConfigurationError: a picture cannot be written.
    """
    stem = f"{frame.index:05d}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', frame.name)}"
    files = {}
    for caption, picture in _draw(sample, prediction, bundle).items():
        # JPEG would blur single pixels of one colour.
        kind = "png" if caption == _CHANGES else "jpg"
        files[caption] = f"{stem}_{caption}.{kind}"
        _write(folder / files[caption], picture)
    return FramePictures(frame, files)


def _draw(
    sample: Sample, prediction: Prediction, bundle: Bundle
) -> Mapping[str, NDArray[np.uint8]]:
    """Each picture, uint8 [H', W', 3] RGB, by its caption."""
    labels, dense_labels = prediction.labels, prediction.dense_labels
    assert labels is not None
    assert dense_labels is not None
    image, palette = sample.image, bundle.palette
    entropy = expand_map(prediction.dense.entropy.numpy(), prediction.size)
    pictures = {
        "image": image,
        "dense-low": draw_overlay(image, dense_labels, palette),
        "refined": draw_overlay(image, labels, palette, refined=prediction.refined),
        "entropy": draw_entropy(entropy, max_nats=math.log(len(bundle.class_names))),
    }
    if (sample.labels != IGNORED_LABEL).any():
        pictures["truth"] = draw_overlay(image, sample.labels, palette)
        pictures[_CHANGES] = draw_changes(
            sample.labels, dense_labels, labels, ignored_label=IGNORED_LABEL
        )
    return {caption: narrow(picture, _WIDTH) for caption, picture in pictures.items()}


def _write(path: Path, picture: NDArray[np.uint8]) -> None:
    if not cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise ConfigurationError(
            f"cannot write {path}; make room on the disk or choose another folder"
        )
