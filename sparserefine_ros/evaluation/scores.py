# SPDX-License-Identifier: Apache-2.0
"""The records of an evaluation: what was counted, over which frames, and the scores of that.

Shape legend: H, W full resolution; h, w low resolution; C classes; P pixels of the band.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import Self

from sparserefine_ros.evaluation.boundary import near_edges
from sparserefine_ros.evaluation.calibration import Calibration
from sparserefine_ros.evaluation.metrics import ConfusionMatrix
from sparserefine_ros.evaluation.objects import ObjectRecall, SmallObjects, find_small_objects
from sparserefine_ros.evaluation.selector import SelectionCurve, SelectionScore


class Variant(enum.Enum):
    """A result that is scored; the value names it in reports."""

    DENSE_LOW = "dense-low"
    DENSE_FULL = "dense-full"
    REFINED = "refined"


@dataclass(frozen=True)
class Truth:
    """The labels of a frame and what every variant is held against.

    Attributes:
        labels: uint8 [H, W], class ids, 255 ignored.
        near_edges: int64 [P], flat indices of the pixels near class edges.
        objects: its small objects.
    """

    labels: NDArray[np.uint8]
    near_edges: NDArray[np.int64]
    objects: SmallObjects

    @classmethod
    def of(cls, labels: NDArray[np.uint8], classes: int) -> Self:
        """Derive the rest from the labels, uint8 [H, W]."""
        return cls(labels, np.flatnonzero(near_edges(labels)), find_small_objects(labels, classes))


@dataclass(frozen=True, eq=False)
class VariantCounts:
    """Everything counted of one variant."""

    confusion: ConfusionMatrix
    boundary: ConfusionMatrix
    objects: ObjectRecall
    calibration: Calibration

    @classmethod
    def empty(cls, classes: int) -> Self:
        """Nothing counted yet."""
        return cls(
            ConfusionMatrix(classes), ConfusionMatrix(classes), ObjectRecall(classes), Calibration()
        )

    def update(
        self, truth: Truth, labels: NDArray[np.uint8], confidence: NDArray[np.uint8]
    ) -> None:
        """Add one frame: predicted class ids and 255 * confidence, both uint8 [H, W]."""
        self.confusion.update(truth.labels, labels)
        band = truth.near_edges
        self.boundary.update(truth.labels.ravel()[band], labels.ravel()[band])
        self.objects.update(truth.objects, labels)
        self.calibration.update(truth.labels, labels, confidence)

    def merge(self, other: Self) -> None:
        """Add what another one counted."""
        self.confusion.merge(other.confusion)
        self.boundary.merge(other.boundary)
        self.objects.merge(other.objects)
        self.calibration.merge(other.calibration)


@dataclass(frozen=True, eq=False)
class Tally:
    """Everything counted over some frames.

    Attributes:
        variants: of each variant.
        selection: of the selection as it was made.
        curve: of selections at other thresholds.
    """

    variants: Mapping[Variant, VariantCounts]
    selection: SelectionScore
    curve: SelectionCurve

    @classmethod
    def empty(cls, variants: Iterable[Variant], classes: int) -> Self:
        """Nothing counted yet."""
        counts = {variant: VariantCounts.empty(classes) for variant in variants}
        return cls(counts, SelectionScore(), SelectionCurve(classes))

    def update_selection(
        self,
        truth: NDArray[np.uint8],
        dense_labels: NDArray[np.uint8],
        selected: NDArray[np.bool_],
        entropy: torch.Tensor,
    ) -> None:
        """Add one frame: three maps [H, W], and the dense result's entropy in nats, [h, w]."""
        self.selection.update(truth, dense_labels, selected)
        self.curve.update(truth, dense_labels, entropy)

    def merge(self, other: Self) -> None:
        """Add what another one counted of the same variants."""
        for variant, counts in self.variants.items():
            counts.merge(other.variants[variant])
        self.selection.merge(other.selection)
        self.curve.merge(other.curve)


# Held where scores are read from a file.
_Share = Annotated[float, Field(ge=0.0, le=1.0)]
_Milliseconds = Annotated[float, Field(ge=0.0, le=1e12)]
_Macs = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True)
class FrameScore:
    """One frame.

    Attributes:
        index: place in the data set.
        name: name in the data set.
        mean_iou: of each variant, 0 .. 1; None without any labelled pixel.
        refined_share: of the picture, 0 .. 1.
        stage_ms: time of each of `records.STAGES` in the pipeline.
        dense_full_stage_ms: the same of the dense model at full resolution; None where not run.
        dense_macs: of the dense model at low resolution; None where not counted.
        dense_full_macs: the same at full resolution.
        refiner_macs: of refiner and ensembler; None where not counted.
    """

    index: int
    name: str
    mean_iou: Mapping[Variant, _Share | None]
    refined_share: _Share
    stage_ms: Mapping[str, _Milliseconds]
    dense_full_stage_ms: Mapping[str, _Milliseconds] | None
    dense_macs: _Macs | None
    dense_full_macs: _Macs | None
    refiner_macs: _Macs | None

    @property
    def final_mean_iou(self) -> float | None:
        """Of the refined result, or without a refiner of the dense one."""
        return self.mean_iou.get(Variant.REFINED, self.mean_iou[Variant.DENSE_LOW])


@dataclass(frozen=True)
class SelectorSetting:
    """What decided which pixels were refined.

    Attributes:
        kind: name of the selector; "none" without a refiner.
        threshold: pixels whose score is above it were refined; nats for entropy.
        max_pixels: pixel budget; 0 for no limit.
    """

    kind: str
    threshold: float
    max_pixels: int

    def __str__(self) -> str:
        """For people."""
        if self.kind == "none":
            return "no refiner"
        budget = f"budget {self.max_pixels} pixels" if self.max_pixels else "no pixel budget"
        above = {
            "entropy": f" above {self.threshold:.3f} nats",
            "oracle": "",
            "random": f", {1.0 - self.threshold:.1%} of the picture",
        }.get(self.kind, f" above {self.threshold:.3f}")
        return f"{self.kind}{above}, {budget}"


@dataclass(frozen=True)
class Setting:
    """What was evaluated and how; all parts of one evaluation agree in it.

    Attributes:
        bundle: name of the bundle.
        digest: SHA-256 of its `bundle.yaml`, hex.
        dense_full: name and digest of the bundle of the full-resolution column; empty without one.
        class_names: names in label order.
        variants: what is scored, in the order of reports.
        selector: what decided which pixels were refined.
        frames: number of frames of the whole evaluation.
        data: kind and split of the data set; its folder may differ from machine to machine.
    """

    bundle: str
    digest: str
    dense_full: str
    class_names: tuple[str, ...]
    variants: tuple[Variant, ...]
    selector: SelectorSetting
    frames: int
    data: str


@dataclass(frozen=True)
class Parameters:
    """Number of weights; None where not counted.

    Attributes:
        dense: of the dense model.
        dense_full: of the dense model at full resolution; None without one, too.
        refiner: of refiner and ensembler.
    """

    dense: int | None
    dense_full: int | None
    refiner: int
