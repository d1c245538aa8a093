# SPDX-License-Identifier: Apache-2.0
"""One frame evaluated: run every variant on it, count, and note times and MACs.

Shape legend: H, W full resolution; h, w low resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.data.datasets import Sample, SegmentationDataset
from sparserefine_ros.evaluation.cost import (
    DenseCost,
    DenseCounter,
    count_parameters,
    count_refiner_macs,
)
from sparserefine_ros.evaluation.scores import (
    FrameScore,
    Parameters,
    SelectorSetting,
    Tally,
    Truth,
    Variant,
)
from sparserefine_ros.maps import confidence_bytes
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import Map, Prediction
from sparserefine_ros.refiner import load_refiner
from sparserefine_ros.selection import expand_map
from sparserefine_ros.sparse.plan import build_plan

_WANTED = frozenset({Map.LABELS, Map.CONFIDENCE, Map.DENSE_LABELS, Map.REFINED})
_WANTED_OF_DENSE_FULL = frozenset({Map.LABELS, Map.CONFIDENCE})
_NOT_RUN = DenseCost(None, None)


@dataclass(frozen=True)
class Task:
    """What a process needs to evaluate frames; it can be sent to another process.

    Attributes:
        bundle: what is scored.
        dense_full: a bundle without refiner that is scored beside it; None for none.
        dataset: labelled frames.
        options: how both are run.
    """

    bundle: Bundle
    dense_full: Bundle | None
    dataset: SegmentationDataset
    options: PipelineOptions

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What is scored, in the order of reports."""
        full = (Variant.DENSE_FULL,) if self.dense_full else ()
        refined = (Variant.REFINED,) if self.bundle.spec.refiner else ()
        return (Variant.DENSE_LOW, *full, *refined)


@dataclass(frozen=True, eq=False)
class FrameResult:
    """One frame.

    Attributes:
        score: its record.
        tally: what was counted on it.
        selector: what decided which pixels were refined.
        parameters: of the networks.
        notes: what could not be measured, and why.
    """

    score: FrameScore
    tally: Tally
    selector: SelectorSetting
    parameters: Parameters
    notes: tuple[str, ...]


class FrameEvaluator:
    """A task with its models loaded.

    Raises:
        SparseRefineError: a bundle cannot be run, see `Pipeline`.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._classes = len(task.bundle.class_names)
        self._pipeline = Pipeline(task.bundle, task.options)
        self._full = Pipeline(task.dense_full, task.options) if task.dense_full else None
        selector = self._pipeline.selector
        self._selector = (
            SelectorSetting(selector.kind, selector.threshold, selector.max_pixels)
            if task.bundle.spec.refiner
            else SelectorSetting("none", 0.0, 0)
        )
        self._refiner = load_refiner(task.bundle) if task.bundle.spec.refiner else None
        self._count_dense = DenseCounter(task.bundle)
        self._count_dense_full = DenseCounter(task.dense_full) if task.dense_full else None

    def __call__(self, index: int) -> FrameResult:
        """Evaluate the frame at a place of the data set."""
        sample = self._task.dataset[index]
        truth = Truth.of(sample.labels, self._classes)
        tally = Tally.empty(self._task.variants, self._classes)
        prediction = self._pipeline(sample.image, _WANTED, self._truth_for_oracles(sample))
        _count(prediction, truth, tally)
        full = self._full(sample.image, _WANTED_OF_DENSE_FULL) if self._full else None
        if full is not None:
            _count_labels(full, truth, tally, Variant.DENSE_FULL)
        return self._result(index, sample, prediction, full, tally)

    def _truth_for_oracles(self, sample: Sample) -> NDArray[np.uint8] | None:
        return sample.labels if self._task.bundle.spec.uses_truth() else None

    def _result(
        self,
        index: int,
        sample: Sample,
        prediction: Prediction,
        full: Prediction | None,
        tally: Tally,
    ) -> FrameResult:
        dense, dense_full = self._count_dense(prediction.low_res_size), _NOT_RUN
        if full is not None and self._count_dense_full is not None:
            dense_full = self._count_dense_full(full.low_res_size)
        ious = {name: counts.confusion.mean_iou() for name, counts in tally.variants.items()}
        score = FrameScore(
            index=index,
            name=sample.name,
            mean_iou={name: None if math.isnan(iou) else iou for name, iou in ious.items()},
            refined_share=prediction.refined_share,
            stage_ms=prediction.times.milliseconds,
            dense_full_stage_ms=full.times.milliseconds if full else None,
            dense_macs=dense.macs,
            dense_full_macs=dense_full.macs,
            refiner_macs=self._refiner_macs(prediction),
        )
        refiner_parameters = count_parameters(self._refiner) if self._refiner else 0
        return FrameResult(
            score,
            tally,
            self._selector,
            Parameters(dense.parameters, dense_full.parameters, refiner_parameters),
            tuple(cost.missing for cost in (dense, dense_full) if cost.missing),
        )

    def _refiner_macs(self, prediction: Prediction) -> int:
        spec = self._task.bundle.spec.refiner
        if self._refiner is None or spec is None or prediction.refined_pixels == 0:
            return 0
        assert prediction.refined is not None
        sites = torch.from_numpy(np.flatnonzero(prediction.refined))
        plan = build_plan(sites, (1, *prediction.size), spec.depth, bounds=spec.bounds)
        return count_refiner_macs(self._refiner, plan)


def _count(prediction: Prediction, truth: Truth, tally: Tally) -> None:
    """Count the dense result, the selection and, where there is a refiner, the refined result."""
    dense = prediction.dense
    assert prediction.dense_labels is not None
    assert prediction.refined is not None
    low_res_confidence = torch.from_numpy(confidence_bytes(dense))
    confidence = expand_map(low_res_confidence, prediction.size).numpy()
    tally.variants[Variant.DENSE_LOW].update(truth, prediction.dense_labels, confidence)
    tally.update_selection(truth, prediction.dense_labels, prediction.refined, dense.entropy)
    if Variant.REFINED in tally.variants:
        _count_labels(prediction, truth, tally, Variant.REFINED)


def _count_labels(prediction: Prediction, truth: Truth, tally: Tally, variant: Variant) -> None:
    assert prediction.labels is not None
    assert prediction.confidence is not None
    tally.variants[variant].update(truth, prediction.labels, prediction.confidence)
