# SPDX-License-Identifier: Apache-2.0
"""The records of an evaluation of a bag: what was asked, what was found, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparserefine_ros.bags.frames import BagCounts
from sparserefine_ros.data.sample import Sample
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.evaluation import Evaluation
from sparserefine_ros.evaluation.scores import FrameScore
from sparserefine_ros.evaluation.subset import ALL_FRAMES, Subset
from sparserefine_ros.records import Prediction


@dataclass(frozen=True)
class BagOptions:
    """What of a bag is evaluated, and how.

    Attributes:
        image_topic: the pictures; None for the only image topic.
        label_topic: their labels; None for none.
        label_folder: their labels as PNG files instead; None for none.
        subset: which messages of the image topic.
        maps: whether labels, entropy, refined pixels and overlay are written as a bag.
        pictures: frames shown in the report, the worst first.
        streams: pictures segmented at the same time, each by a copy of the models; 0 for as many as
            keep the cores busy.

    Raises:
        ConfigurationError: labels from two places, or a negative number of pictures or streams.
    """

    image_topic: str | None = None
    label_topic: str | None = None
    label_folder: Path | None = None
    subset: Subset = ALL_FRAMES
    maps: bool = True
    pictures: int = 6
    streams: int = 0

    def __post_init__(self) -> None:
        if self.label_topic is not None and self.label_folder is not None:
            raise ConfigurationError(
                "expected labels from a topic or from a folder, got both; leave one out"
            )
        if self.pictures < 0:
            raise ConfigurationError(f"expected 0 or more pictures, got {self.pictures}")
        if self.streams < 0:
            raise ConfigurationError(f"expected 0 or more streams, got {self.streams}")

    @property
    def labelled(self) -> bool:
        """Whether there are labels at all."""
        return self.label_topic is not None or self.label_folder is not None


@dataclass(frozen=True)
class FrameRow:
    """What is told of one frame.

    Attributes:
        index: place among the messages of the image topic.
        stamp: of the picture in seconds, exact.
        stamp_ns: the same in nanoseconds.
        size: (H, W).
        refined_pixels: number of refined pixels.
        mean_entropy_nats: over the picture, after refinement.
        budget_hit: whether the pixel budget removed candidates.
        score: its scores and times.
    """

    index: int
    stamp: str
    stamp_ns: int
    size: tuple[int, int]
    refined_pixels: int
    mean_entropy_nats: float
    budget_hit: bool
    score: FrameScore


@dataclass(frozen=True, eq=False)
class WorstFrame:
    """A frame kept to be drawn.

    Attributes:
        badness: higher is worse.
        score: its scores.
        sample: the frame.
        prediction: its result.
    """

    badness: float
    score: FrameScore
    sample: Sample
    prediction: Prediction


@dataclass(frozen=True, eq=False)
class BagResult:
    """A bag evaluated.

    Attributes:
        bag: name of its folder or file.
        part: which part of it, I/N; empty for the whole.
        image_topic: topic of the pictures.
        labels: where the labels came from, in words; empty without.
        evaluation: the scores.
        rows: one for each usable picture.
        counts: what was found on the image topic.
        unusable_labels: label messages that were none.
        damage: what could not be read, in words.
        worst: frames to draw, the worst first.
        seconds: from the first picture to the last result.
        streams: pictures that were segmented at the same time.
        threads: of each of them.
    """

    bag: str
    part: str
    image_topic: str
    labels: str
    evaluation: Evaluation
    rows: tuple[FrameRow, ...]
    counts: BagCounts
    unusable_labels: int
    damage: tuple[str, ...]
    worst: tuple[WorstFrame, ...]
    seconds: float
    streams: int
    threads: int
