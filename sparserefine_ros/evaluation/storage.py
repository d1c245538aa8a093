# SPDX-License-Identifier: Apache-2.0
"""Evaluations as JSON, with everything needed to join them again, and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationError

from sparserefine_ros.configuration import Record, describe_mistakes
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.counts import Counts
from sparserefine_ros.evaluation.evaluation import Evaluation
from sparserefine_ros.evaluation.scores import (
    FrameScore,
    Parameters,
    Setting,
    Tally,
    Variant,
    VariantCounts,
)
from sparserefine_ros.files import write_text_whole
from sparserefine_ros.records import STAGES

_RAW: Final = "raw"
_ALL: Final = "(all)"

Matrix = tuple[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], ...]


class _RawVariant(Record):
    """Counts of one variant."""

    confusion: Matrix
    boundary: Matrix
    objects: Matrix
    calibration: Matrix


class _Raw(Record):
    """An evaluation as it was counted."""

    format: Literal[1] = 1
    setting: Setting
    data: str
    machines: tuple[str, ...]
    frames: Annotated[tuple[FrameScore, ...], Field(min_length=1)]
    variants: dict[Variant, _RawVariant]
    selection: Matrix
    curve: Matrix
    parameters: Parameters
    notes: tuple[str, ...]


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Write scores and counts; `path` is replaced only once the file is whole.

    Raises:
        SparseRefineError: the file cannot be written.
    """
    content = {**scores_to_json(evaluation), _RAW: _to_raw(evaluation).model_dump(mode="json")}
    write_text_whole(path, json.dumps(content, allow_nan=False) + "\n")


def scores_to_json(evaluation: Evaluation, *, times: bool = True) -> dict[str, Any]:
    """Scores as plain values; shares 0 .. 1, None where nothing could be scored.

    Args:
        evaluation: what is told.
        times: whether to tell latencies; without them two runs give the same.
    """
    selection = evaluation.tally.selection
    curve = evaluation.tally.curve
    return {
        "bundle": evaluation.setting.bundle,
        "data": evaluation.data,
        "frames": len(evaluation.frames),
        **_latency(evaluation, evaluation.final, told=times),
        "density": selection.density,
        "selector_recall": _number(selection.recall),
        "selector_precision": _number(selection.precision),
        "selector_curve": [
            {
                "threshold_nats": threshold,
                "density": score.density,
                "recall": _number(score.recall),
                "precision": _number(score.precision),
            }
            for threshold, score in zip(curve.thresholds.tolist(), curve.scores(), strict=True)
        ],
        "refiner_macs": evaluation.refiner_macs(),
        "refiner_parameters": evaluation.parameters.refiner,
        "variants": {
            variant.value: _variant_to_json(evaluation, variant, times=times)
            for variant in evaluation.setting.variants
        },
    }


def _latency(evaluation: Evaluation, variant: Variant, *, told: bool) -> dict[str, float]:
    return {"latency_ms": round(evaluation.totals(variant).latency_ms, 3)} if told else {}


def _variant_to_json(evaluation: Evaluation, variant: Variant, *, times: bool) -> dict[str, Any]:
    totals, classes = evaluation.totals(variant), evaluation.classes(variant)
    return {
        "miou": _number(totals.mean_iou),
        "boundary_miou": _number(totals.boundary_mean_iou),
        "pixel_accuracy": _number(totals.pixel_accuracy),
        "small_object_recall": _number(totals.small_object_recall),
        "calibration_error": _number(totals.calibration_error),
        **_latency(evaluation, variant, told=times),
        "macs": totals.macs,
        "parameters": totals.parameters,
        "iou": {row.name: _number(row.iou) for row in classes},
        "boundary_iou": {row.name: _number(row.boundary_iou) for row in classes},
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def read_json(path: Path) -> Evaluation:
    """Read what `write_json` wrote.

    Raises:
        ConfigurationError: no such file, or not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigurationError(f"expected a readable file {path}: {err.strerror}") from err
    except (ValueError, RecursionError) as err:
        raise ConfigurationError(f"{path} is not JSON: {err}") from err
    if not isinstance(content, dict) or _RAW not in content:
        raise ConfigurationError(
            f"{path}: expected the scores of an evaluation with their counts under {_RAW!r}; "
            "write them with sparserefine evaluate --json"
        )
    try:
        raw = _Raw.model_validate(content[_RAW])
        return _from_raw(raw)
    except ValidationError as err:
        raise ConfigurationError(f"{path}: {describe_mistakes(err)}") from err
    except ValueError as err:
        raise ConfigurationError(f"{path}: {err}; evaluate again") from err


def _to_raw(evaluation: Evaluation) -> _Raw:
    tally = evaluation.tally
    return _Raw(
        setting=evaluation.setting,
        data=evaluation.data,
        machines=evaluation.machines,
        frames=evaluation.frames,
        variants={
            variant: _RawVariant(
                confusion=counts.confusion.counts.tolist(),
                boundary=counts.boundary.counts.tolist(),
                objects=counts.objects.counts.tolist(),
                calibration=counts.calibration.counts.tolist(),
            )
            for variant, counts in tally.variants.items()
        },
        selection=tally.selection.counts.tolist(),
        curve=tally.curve.counts.tolist(),
        parameters=evaluation.parameters,
        notes=evaluation.notes,
    )


def _from_raw(raw: _Raw) -> Evaluation:
    """Rebuild an evaluation; ValueError when counts and setting do not fit."""
    if set(raw.variants) != set(raw.setting.variants):
        raise ValueError(
            f"expected counts of {[v.value for v in raw.setting.variants]}, "
            f"got {[v.value for v in raw.variants]}"
        )
    for frame in raw.frames:
        if set(frame.stage_ms) != set(STAGES):
            raise ValueError(f"expected times of {list(STAGES)}, got {list(frame.stage_ms)}")
    tally = Tally.empty(raw.setting.variants, len(raw.setting.class_names))
    for variant, counts in raw.variants.items():
        _fill_variant(tally.variants[variant], counts)
    _fill(tally.selection, raw.selection)
    _fill(tally.curve, raw.curve)
    return Evaluation(
        raw.setting, raw.data, raw.machines, raw.frames, tally, raw.parameters, raw.notes
    )


def _fill_variant(counts: VariantCounts, raw: _RawVariant) -> None:
    _fill(counts.confusion, raw.confusion)
    _fill(counts.boundary, raw.boundary)
    _fill(counts.objects, raw.objects)
    _fill(counts.calibration, raw.calibration)


def _fill(counts: Counts, rows: Sequence[Sequence[int]]) -> None:
    found = np.array(rows, np.int64)
    if found.shape != counts.counts.shape:
        raise ValueError(
            f"expected {type(counts).__name__} counts {list(counts.counts.shape)}, "
            f"got {list(found.shape)}"
        )
    counts.counts[:] = found


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """Write a row for each variant and class, and one named (all) for the variant as a whole.

    Shares 0 .. 1; empty where nothing could be scored. `path` is replaced once the file is whole.

    Raises:
        SparseRefineError: the file cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        [
            "variant", "class", "iou", "boundary_iou", "accuracy", "small_objects",
            "small_object_recall", "calibration_error", "latency_ms", "macs", "parameters",
        ]
    )  # fmt: skip
    for variant in evaluation.setting.variants:
        for row in evaluation.classes(variant):
            shares = (row.iou, row.boundary_iou, row.accuracy)
            cells = [*map(_cell, shares), row.small_objects, _cell(row.small_object_recall)]
            rows.writerow([variant.value, row.name, *cells, "", "", "", ""])
        totals = evaluation.totals(variant)
        objects = int(evaluation.tally.variants[variant].objects.objects.sum())
        shares = (totals.mean_iou, totals.boundary_mean_iou, totals.pixel_accuracy)
        cells = [*map(_cell, shares), objects, _cell(totals.small_object_recall)]
        cells += [_cell(totals.calibration_error), f"{totals.latency_ms:.3f}"]
        rows.writerow([variant.value, _ALL, *cells, totals.macs, totals.parameters])
    write_text_whole(path, text.getvalue())


def _cell(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.6f}"
