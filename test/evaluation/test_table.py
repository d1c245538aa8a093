# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

from sparserefine_ros.evaluation.evaluation import Evaluation
from sparserefine_ros.evaluation.scores import Variant
from sparserefine_ros.evaluation.table import format_table


def test_rows_hold_the_scores_in_the_order_of_the_columns(whole: Evaluation) -> None:
    lines = format_table(whole).splitlines()
    assert lines[0].split()[2:] == ["dense-low", "dense-full", "refined"]
    rows = {line[:20].strip(): line[20:].split() for line in lines[1:]}
    totals = [whole.totals(variant) for variant in Variant]
    assert rows["mean IoU, %"] == [f"{100 * t.mean_iou:.2f}" for t in totals]
    assert rows["boundary mean IoU, %"] == [f"{100 * t.boundary_mean_iou:.2f}" for t in totals]
    assert rows["calibration error, %"] == [f"{100 * t.calibration_error:.2f}" for t in totals]
    assert rows["small objects, %"] == ["-", "-", "-"]
    cars = [whole.classes(variant)[1] for variant in Variant]
    assert rows["car"] == [f"{100 * row.iou:.2f}" for row in cars]
    assert any(line.startswith("5 frames. Selector: entropy above ") for line in lines)


def test_incomplete_evaluations_and_gaps_are_said(parts: list[Evaluation]) -> None:
    text = format_table(dataclasses.replace(parts[0], notes=("no MACs, because",)))
    assert "2 of 5 frames. " in text
    assert text.endswith("no MACs, because")
