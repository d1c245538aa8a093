# SPDX-License-Identifier: Apache-2.0
"""One frame evaluated: run every variant on it, count, and note times and MACs.

Shape legend: H, W full resolution; h, w low resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.data.datasets import IGNORED_LABEL, Sample, SegmentationDataset
from sparserefine_ros.errors import SparseRefineError
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
class Contest:
    """What is scored.

    Attributes:
        bundle: what is scored.
        options: how it is run.
        dense_full: a bundle without refiner that is run alike and scored beside it; None for none.
        counts_refiner_macs: whether the refiner's multiplications are counted on each frame, which
            takes a tenth of its time.
    """

    bundle: Bundle
    options: PipelineOptions
    dense_full: Bundle | None = None
    counts_refiner_macs: bool = True

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What is scored, in the order of reports."""
        full = (Variant.DENSE_FULL,) if self.dense_full else ()
        refined = (Variant.REFINED,) if self.bundle.spec.refiner else ()
        return (Variant.DENSE_LOW, *full, *refined)


@dataclass(frozen=True)
class Task:
    """What a process needs to evaluate frames; it can be sent to another process.

    Attributes:
        contest: what is scored.
        dataset: labelled frames.
    """

    contest: Contest
    dataset: SegmentationDataset


@dataclass(frozen=True, eq=False)
class Runs:
    """What was predicted for one frame: by the bundle, and by the dense model at full resolution.

    Attributes:
        prediction: with at least the maps that are scored.
        full: None where it was not run.
    """

    prediction: Prediction
    full: Prediction | None = None


@dataclass(frozen=True, eq=False)
class FrameResult:
    """One frame.

    Attributes:
        score: its record.
        tally: what was counted on it.
        selector: what decided which pixels were refined.
        engines: what computed dense model and refiner.
        parameters: of the networks.
        notes: what could not be measured, and why.
    """

    score: FrameScore
    tally: Tally
    selector: SelectorSetting
    engines: str
    parameters: Parameters
    notes: tuple[str, ...]


class FrameEvaluator:
    """A contest with its models loaded.

    `run` and `score` share nothing that changes, so that one frame may be scored in another thread
    while the next one is run.

    Raises:
        SparseRefineError: a bundle cannot be run, see `Pipeline`.
    """

    def __init__(self, contest: Contest) -> None:
        bundle, full = contest.bundle, contest.dense_full
        self._contest = contest
        self._classes = len(bundle.class_names)
        self.pipeline = Pipeline(bundle, contest.options)
        self._full = Pipeline(full, contest.options) if full else None
        selector = self.pipeline.selector
        self._selector = (
            SelectorSetting(selector.kind, selector.threshold, selector.max_pixels)
            if bundle.spec.refiner
            else SelectorSetting("none", 0.0, 0)
        )
        self._refiner = load_refiner(bundle) if bundle.spec.refiner else None
        self._refiner_parameters = count_parameters(self._refiner) if self._refiner else 0
        self._count_dense = DenseCounter(bundle)
        self._count_dense_full = DenseCounter(full) if full else None

    def __call__(self, index: int, sample: Sample) -> FrameResult:
        """Run and score a frame."""
        return self.score(index, sample, self.run(sample))

    def run(self, sample: Sample, maps: frozenset[Map] = frozenset()) -> Runs:
        """Predict a frame, with the maps that are scored and those asked for.

        Raises:
            SparseRefineError: the memory of the GPU did not suffice to refine it; what was left
                would be scored as refined.
        """
        truth = sample.labels if self._contest.bundle.spec.uses_truth() else None
        prediction = self.pipeline(sample.image, _WANTED | maps, truth)
        if prediction.unrefined:
            raise SparseRefineError(prediction.unrefined)
        full = self._full(sample.image, _WANTED_OF_DENSE_FULL) if self._full else None
        return Runs(prediction, full)

    def score(self, index: int, sample: Sample, runs: Runs) -> FrameResult:
        """Count what was predicted right and wrong.

        Args:
            index: place of the frame in its data set.
            sample: the frame; without any label, only the selection is counted.
            runs: what `run` returned for it.
        """
        tally = Tally.empty(self._contest.variants, self._classes)
        dense_labels, refined = runs.prediction.dense_labels, runs.prediction.refined
        assert dense_labels is not None
        assert refined is not None
        entropy = runs.prediction.dense.entropy
        tally.update_selection(sample.labels, dense_labels, refined, entropy)
        if (sample.labels != IGNORED_LABEL).any():
            truth = Truth.of(sample.labels, self._classes)
            _count(runs.prediction, truth, tally)
            if runs.full is not None:
                _count_labels(runs.full, truth, tally, Variant.DENSE_FULL)
        return self._result(index, sample, runs, tally)

    def _result(self, index: int, sample: Sample, runs: Runs, tally: Tally) -> FrameResult:
        prediction, full = runs.prediction, runs.full
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
        return FrameResult(
            score,
            tally,
            self._selector,
            ", ".join(f"{stage}: {name}" for stage, name in self.pipeline.backends.items()),
            Parameters(dense.parameters, dense_full.parameters, self._refiner_parameters),
            tuple(cost.missing for cost in (dense, dense_full) if cost.missing),
        )

    def _refiner_macs(self, prediction: Prediction) -> int | None:
        if not self._contest.counts_refiner_macs:
            return None
        spec = self._contest.bundle.spec.refiner
        if self._refiner is None or spec is None or prediction.refined_pixels == 0:
            return 0
        assert prediction.refined is not None
        sites = torch.from_numpy(np.flatnonzero(prediction.refined))
        plan = build_plan(sites, (1, *prediction.size), spec.depth, bounds=spec.bounds)
        return count_refiner_macs(self._refiner, plan)


def _count(prediction: Prediction, truth: Truth, tally: Tally) -> None:
    """Count the dense result and, where there is a refiner, the refined one."""
    dense = prediction.dense
    assert prediction.dense_labels is not None
    confidence = expand_map(confidence_bytes(dense), prediction.size)
    tally.variants[Variant.DENSE_LOW].update(truth, prediction.dense_labels, confidence)
    if Variant.REFINED in tally.variants:
        _count_labels(prediction, truth, tally, Variant.REFINED)


def _count_labels(prediction: Prediction, truth: Truth, tally: Tally, variant: Variant) -> None:
    assert prediction.labels is not None
    assert prediction.confidence is not None
    tally.variants[variant].update(truth, prediction.labels, prediction.confidence)
