# SPDX-License-Identifier: Apache-2.0
"""An evaluation as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from sparserefine_ros.evaluation.evaluation import Evaluation, Totals
from sparserefine_ros.evaluation.text import describe_selection, percent

_NAME_WIDTH = 20
_WIDTH = 14


def format_table(evaluation: Evaluation) -> str:
    """One column per variant: IoU of each class, then the totals; then selection and times."""
    variants = evaluation.setting.variants
    head = f"{'IoU, %':<{_NAME_WIDTH}}" + "".join(f"{v.value:>{_WIDTH}}" for v in variants)
    line = "-" * len(head)
    classes = [evaluation.classes(variant) for variant in variants]
    totals = [evaluation.totals(variant) for variant in variants]
    return "\n".join(
        [
            head,
            line,
            *(
                _row(rows[0].name, (percent(row.iou) for row in rows))
                for rows in zip(*classes, strict=True)
            ),
            line,
            *(_row(title, cells) for title, cells in _total_rows(totals)),
            "",
            *_summary(evaluation),
        ]
    )


def _total_rows(totals: list[Totals]) -> Iterable[tuple[str, list[str]]]:
    yield "mean IoU, %", [percent(t.mean_iou) for t in totals]
    yield "boundary mean IoU, %", [percent(t.boundary_mean_iou) for t in totals]
    yield "pixel accuracy, %", [percent(t.pixel_accuracy) for t in totals]
    yield "small objects, %", [percent(t.small_object_recall) for t in totals]
    yield "calibration error, %", [percent(t.calibration_error) for t in totals]
    yield "latency, ms", [f"{t.latency_ms:.1f}" for t in totals]
    yield "GMACs per frame", [_scaled(t.macs, 1e9) for t in totals]
    yield "parameters, M", [_scaled(t.parameters, 1e6) for t in totals]


def _summary(evaluation: Evaluation) -> Iterable[str]:
    yield describe_selection(evaluation)
    stages = evaluation.stage_times(evaluation.final)
    yield "median ms: " + ", ".join(f"{name} {ms.median:.1f}" for name, ms in stages.items())
    yield from evaluation.notes


def _row(title: str, cells: Iterable[str]) -> str:
    return f"{title:<{_NAME_WIDTH}}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells)


def _scaled(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.2f}"
