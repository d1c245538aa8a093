# SPDX-License-Identifier: Apache-2.0
"""The tables of an ablation in Markdown and as plain values; rows not yet run show a dash."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sparserefine_ros.ablation.runs import DEFAULT, Table
from sparserefine_ros.evaluation.evaluation import Evaluation
from sparserefine_ros.evaluation.scores import Variant

_DASH: Final = "-"


@dataclass(frozen=True)
class Measure:
    """A score of an evaluation.

    Attributes:
        head: of its column.
        of: the score; NaN where it could not be measured.
        decimals: shown.
    """

    head: str
    of: Callable[[Evaluation], float]
    decimals: int = 1

    def cell(self, evaluation: Evaluation | None) -> str:
        """Text of the column."""
        value = math.nan if evaluation is None else self.of(evaluation)
        return _DASH if math.isnan(value) else f"{value:.{self.decimals}f}"


def _selector_ms(evaluation: Evaluation) -> float:
    times = evaluation.stage_times(evaluation.final)
    return times["entropy"].median + times["selection"].median


MEASURES: Final[Mapping[str, Measure]] = {
    "density": Measure("Density, %", lambda e: 100 * e.tally.selection.density),
    "recall": Measure("Recall, %", lambda e: 100 * e.tally.selection.recall),
    "precision": Measure("Precision, %", lambda e: 100 * e.tally.selection.precision),
    "selector_ms": Measure("Selector, ms", _selector_ms, 2),
    "latency_ms": Measure("Latency, ms", lambda e: e.totals(e.final).latency_ms),
    "refiner_parameters": Measure("Parameters, M", lambda e: e.parameters.refiner / 1e6, 2),
    "refiner_macs": Measure("GMACs", lambda e: (e.refiner_macs() or 0.0) / 1e9, 2),
    "miou": Measure("Mean IoU, %", lambda e: 100 * e.totals(e.final).mean_iou, 2),
}


def to_markdown(tables: Sequence[Table], found: Mapping[str, Evaluation]) -> str:
    """Tables 5a to 5e, and table 8 once the default setting was evaluated."""
    parts = [_choices_to_markdown(table, found) for table in tables]
    if DEFAULT in found:
        parts.append(_classes_to_markdown(found[DEFAULT]))
    return "\n".join(parts)


def _choices_to_markdown(table: Table, found: Mapping[str, Evaluation]) -> str:
    measures = [MEASURES[name] for name in table.measures]
    heads = [*table.choices, *(measure.head for measure in measures)]
    lines = []
    for row in table.rows:
        cells = [*row.labels, *(measure.cell(found.get(row.run)) for measure in measures)]
        lines.append([f"**{cell}**" for cell in cells] if row.run == DEFAULT else cells)
    return _markdown(f"{table.number}: {table.title}", heads, lines)


def _classes_to_markdown(evaluation: Evaluation) -> str:
    lines = []
    for variant in (Variant.DENSE_LOW, Variant.REFINED, Variant.DENSE_FULL):
        if variant in evaluation.setting.variants:
            ious = [row.iou for row in evaluation.classes(variant)]
            shares = [*ious, evaluation.totals(variant).mean_iou]
            cells = (_DASH if math.isnan(share) else f"{100 * share:.1f}" for share in shares)
            lines.append([variant.value, *cells])
    heads = ["IoU, %", *evaluation.setting.class_names, "mean"]
    return _markdown("8: Classes", heads, lines)


def _markdown(title: str, heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return f"## Table {title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in cells)


def to_values(tables: Sequence[Table], found: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """The rows of tables 5a to 5e as plain values, None where not measured."""
    return [
        {
            "table": table.number,
            **dict(zip(table.choices, row.labels, strict=True)),
            "default": row.run == DEFAULT,
            **{name: _value(name, found.get(row.run)) for name in table.measures},
        }
        for table in tables
        for row in table.rows
    ]


def _value(name: str, evaluation: Evaluation | None) -> float | None:
    value = math.nan if evaluation is None else MEASURES[name].of(evaluation)
    return None if math.isnan(value) else value
