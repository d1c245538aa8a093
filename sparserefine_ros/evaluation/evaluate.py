# SPDX-License-Identifier: Apache-2.0
"""Accuracy of a bundle on a labelled data set: dense result, refined result, selection."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.data.datasets import SegmentationDataset, iterate
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.metrics import ConfusionMatrix, SelectionScore
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import Map

_WANTED = frozenset({Map.LABELS, Map.DENSE_LABELS, Map.REFINED})


@dataclass(frozen=True)
class Evaluation:
    """Scores over a data set.

    Attributes:
        bundle: name of the bundle.
        frames: number of frames.
        class_names: names in label order.
        variants: confusion matrix of each result, by its name in the report.
        selection: how well the selection found the wrong pixels of the dense result.
        latency_ms: median wall-clock time of the pipeline per frame.
    """

    bundle: str
    frames: int
    class_names: tuple[str, ...]
    variants: dict[str, ConfusionMatrix]
    selection: SelectionScore
    latency_ms: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; shares 0 .. 1, None for a class that does not occur."""
        return {
            "bundle": self.bundle,
            "frames": self.frames,
            "latency_ms": round(self.latency_ms, 3),
            "density": self.selection.density,
            "selector_recall": self.selection.recall,
            "selector_precision": self.selection.precision,
            "variants": {
                name: {
                    "miou": matrix.mean_iou(),
                    "pixel_accuracy": matrix.pixel_accuracy(),
                    "iou": {
                        label: None if math.isnan(value) else float(value)
                        for label, value in zip(self.class_names, matrix.iou(), strict=True)
                    },
                }
                for name, matrix in self.variants.items()
            },
        }

    def to_table(self) -> str:
        """Percentages, one row per class, for people."""
        names = list(self.variants)
        head = f"{'IoU, %':<16}" + "".join(f"{name:>14}" for name in names)
        rows = [head, "-" * len(head)]
        ious = [self.variants[name].iou() for name in names]
        for label, *values in zip(self.class_names, *ious, strict=True):
            rows.append(f"{label:<16}" + "".join(_percent(value) for value in values))
        rows.append("-" * len(head))
        for title, of in (
            ("mean IoU", ConfusionMatrix.mean_iou),
            ("pixel accuracy", ConfusionMatrix.pixel_accuracy),
        ):
            cells = (_percent(of(self.variants[name])) for name in names)
            rows.append(f"{title:<16}" + "".join(cells))
        score = self.selection
        rows += [
            "",
            f"frames {self.frames}, density {score.density:.1%}, selector recall "
            f"{score.recall:.1%}, precision {score.precision:.1%}, "
            f"median latency {self.latency_ms:.1f} ms",
        ]
        return "\n".join(rows)


def _percent(share: float) -> str:
    return f"{'-':>14}" if math.isnan(share) else f"{100 * share:14.2f}"


def evaluate(
    bundle: Bundle,
    dataset: SegmentationDataset,
    options: PipelineOptions,
    *,
    dense_full: bool = False,
) -> Evaluation:
    """Run a bundle over a data set.

    Args:
        bundle: what is scored.
        dataset: labelled frames; its classes must be the bundle's.
        options: how the bundle is run.
        dense_full: also score the dense model alone at full resolution, with the same weights.

    Raises:
        ConfigurationError: the classes differ.
    """
    if dataset.class_names != bundle.class_names:
        raise ConfigurationError(
            f"expected data with the bundle's classes {list(bundle.class_names)}, "
            f"got {list(dataset.class_names)}; evaluate on data labelled alike"
        )
    pipeline = Pipeline(bundle, options)
    full = Pipeline(at_full_resolution(bundle), options) if dense_full else None
    classes = len(bundle.class_names)
    dense, refined, dense_at_full = (ConfusionMatrix(classes) for _ in range(3))
    selection, latencies = SelectionScore(), []
    for sample in tqdm(iterate(dataset), total=len(dataset), unit="frame", desc="evaluating"):
        prediction = pipeline(sample.image, _WANTED)
        assert prediction.labels is not None
        assert prediction.dense_labels is not None
        assert prediction.refined is not None
        dense.update(sample.labels, prediction.dense_labels)
        refined.update(sample.labels, prediction.labels)
        selection.update(sample.labels, prediction.dense_labels, prediction.refined)
        latencies.append(prediction.times.total_ms)
        if full is not None:
            labels = full(sample.image).labels
            assert labels is not None
            dense_at_full.update(sample.labels, labels)
    variants = {"dense-low": dense}
    if full is not None:
        variants["dense-full"] = dense_at_full
    if bundle.spec.refiner is not None:
        variants["refined"] = refined
    return Evaluation(
        bundle=bundle.name,
        frames=len(dataset),
        class_names=bundle.class_names,
        variants=variants,
        selection=selection,
        latency_ms=float(np.median(latencies)),
    )


def at_full_resolution(bundle: Bundle) -> Bundle:
    """The dense model of a bundle alone, run at the size of the picture; nothing is written.

    Raises:
        ConfigurationError: the model takes one size only.
    """
    taken = bundle.spec.dense.input
    if taken.size is not None:
        raise ConfigurationError(
            f"expected a dense model with a free input size, {bundle.name} takes "
            f"{list(taken.size)} only; evaluate without the full-resolution column"
        )
    whole = taken.model_copy(update={"scale": 1.0})
    dense = bundle.spec.dense.model_copy(update={"input": whole})
    spec = bundle.spec.model_copy(update={"dense": dense, "refiner": None, "selector": None})
    return Bundle(bundle.folder, spec, bundle.digest)


def write_report(evaluation: Evaluation, path: Path) -> None:
    """Write the scores as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evaluation.to_json(), indent=2) + "\n", encoding="utf-8")
