# SPDX-License-Identifier: Apache-2.0
"""The result of an evaluation: joins its parts and answers what tables and reports ask."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from typing_extensions import Self

from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.measure import Spread
from sparserefine_ros.evaluation.scores import FrameScore, Parameters, Setting, Tally, Variant
from sparserefine_ros.records import STAGES

_DENSE_STAGES: Final = ("resize", "dense", "entropy", "maps")


@dataclass(frozen=True)
class Totals:
    """Scores of a variant over all frames; shares 0 .. 1, NaN where nothing could be scored.

    Attributes:
        mean_iou: over the classes present.
        boundary_mean_iou: the same near class edges.
        pixel_accuracy: share of labelled pixels predicted right.
        small_object_recall: share of small objects found.
        calibration_error: expected calibration error.
        latency_ms: median time of a frame.
        macs: mean per frame; None where not counted.
        parameters: weights; None where not counted.
    """

    mean_iou: float
    boundary_mean_iou: float
    pixel_accuracy: float
    small_object_recall: float
    calibration_error: float
    latency_ms: float
    macs: float | None
    parameters: int | None


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class in one variant; shares 0 .. 1, NaN where nothing could be scored.

    Attributes:
        name: of the class.
        iou: intersection over union.
        boundary_iou: the same near class edges.
        accuracy: share of the class's pixels predicted right.
        small_objects: their number.
        small_object_recall: share of them found.
    """

    name: str
    iou: float
    boundary_iou: float
    accuracy: float
    small_objects: int
    small_object_recall: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores over frames of a data set.

    Attributes:
        setting: what was evaluated and how.
        data: the data set, in words.
        machines: where, and on which engines.
        frames: those evaluated so far, by ascending index.
        tally: what was counted over them.
        parameters: of the networks.
        notes: what could not be measured, and why.
    """

    setting: Setting
    data: str
    machines: tuple[str, ...]
    frames: tuple[FrameScore, ...]
    tally: Tally
    parameters: Parameters
    notes: tuple[str, ...]

    @classmethod
    def merged(cls, parts: Sequence[Self]) -> Self:
        """Join parts that cover different frames.

        Raises:
            ConfigurationError: no part, parts of different evaluations, or a frame in two of them.
        """
        if not parts:
            raise ConfigurationError("expected at least one part to merge, got none")
        first = parts[0]
        for part in parts[1:]:
            _check_same_setting(first.setting, part.setting)
        frames = sorted((f for part in parts for f in part.frames), key=lambda f: f.index)
        for before, after in itertools.pairwise(frames):
            if before.index == after.index:
                raise ConfigurationError(
                    f"expected parts with different frames, frame {after.index} ({after.name}) is "
                    "in two of them; merge each part once"
                )
        tally = Tally.empty(first.setting.variants, len(first.setting.class_names))
        for part in parts:
            tally.merge(part.tally)
        return cls(
            first.setting,
            first.data,
            tuple(dict.fromkeys(m for part in parts for m in part.machines)),
            tuple(frames),
            tally,
            # A part that ran where onnx is not installed knows less.
            max((part.parameters for part in parts), key=_known),
            tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        )

    @property
    def final(self) -> Variant:
        """The variant that the bundle's user gets."""
        refined = Variant.REFINED in self.setting.variants
        return Variant.REFINED if refined else Variant.DENSE_LOW

    def totals(self, variant: Variant) -> Totals:
        """Scores of a variant over all frames and classes."""
        counts = self.tally.variants[variant]
        return Totals(
            mean_iou=counts.confusion.mean_iou(),
            boundary_mean_iou=counts.boundary.mean_iou(),
            pixel_accuracy=counts.confusion.pixel_accuracy(),
            small_object_recall=counts.objects.recall(),
            calibration_error=counts.calibration.expected_error(),
            latency_ms=self._latency_ms(variant),
            macs=_mean([_macs(frame, variant) for frame in self.frames]),
            parameters=self._parameters(variant),
        )

    def classes(self, variant: Variant) -> list[ClassScores]:
        """Scores of each class, in label order."""
        counts = self.tally.variants[variant]
        columns = (
            counts.confusion.iou().tolist(),
            counts.boundary.iou().tolist(),
            counts.confusion.class_accuracy().tolist(),
            counts.objects.objects.tolist(),
            counts.objects.by_class().tolist(),
        )
        rows = zip(self.setting.class_names, *columns, strict=True)
        return [ClassScores(*row) for row in rows]

    def stage_times(self, variant: Variant) -> Mapping[str, Spread]:
        """Time of each stage and of the whole, for `final` or the dense model at full resolution.

        Times are those of the evaluation, which asks for more maps than the node and may run
        several processes at once; `sparserefine bench` times a quiet pipeline.
        """
        if variant is Variant.DENSE_FULL:
            times = [f.dense_full_stage_ms for f in self.frames if f.dense_full_stage_ms]
        else:
            times = [frame.stage_ms for frame in self.frames]
        rows = {stage: Spread.of([each[stage] for each in times]) for stage in STAGES}
        rows["total"] = Spread.of([sum(each.values()) for each in times])
        return rows

    def refiner_macs(self) -> float | None:
        """Mean over the frames, refiner and ensembler; None where not counted."""
        return _mean([frame.refiner_macs for frame in self.frames])

    def worst_frames(self, count: int) -> list[FrameScore]:
        """Frames of the lowest mean IoU in `final`, lowest first; frames without labels are out."""
        scored = [(frame.mean_iou[self.final], frame) for frame in self.frames]
        known = [(score, frame) for score, frame in scored if score is not None]
        return [frame for _, frame in sorted(known, key=lambda pair: pair[0])[:count]]

    def _latency_ms(self, variant: Variant) -> float:
        if variant is not Variant.DENSE_LOW:
            return self.stage_times(variant)["total"].median
        # The dense result is a by-product of the pipeline: what is not spent on refinement.
        sums = [sum(frame.stage_ms[stage] for stage in _DENSE_STAGES) for frame in self.frames]
        return float(np.median(sums))

    def _parameters(self, variant: Variant) -> int | None:
        if variant is Variant.DENSE_FULL:
            return self.parameters.dense_full
        dense = self.parameters.dense
        if variant is Variant.DENSE_LOW or dense is None:
            return dense
        return dense + self.parameters.refiner


def _macs(frame: FrameScore, variant: Variant) -> int | None:
    if variant is Variant.DENSE_FULL:
        return frame.dense_full_macs
    if variant is Variant.DENSE_LOW:
        return frame.dense_macs
    if frame.dense_macs is None or frame.refiner_macs is None:
        return None
    return frame.dense_macs + frame.refiner_macs


def _mean(values: Sequence[int | None]) -> float | None:
    """None when one is missing: a mean over the others would be of other frames."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _known(parameters: Parameters) -> int:
    return sum(value is not None for value in dataclasses.astuple(parameters))


def _check_same_setting(expected: Setting, found: Setting) -> None:
    for field in dataclasses.fields(Setting):
        want, got = getattr(expected, field.name), getattr(found, field.name)
        if want != got:
            raise ConfigurationError(
                f"expected parts of one evaluation, but {field.name} is {want} in one and "
                f"{got} in another; evaluate all parts with the same options"
            )
