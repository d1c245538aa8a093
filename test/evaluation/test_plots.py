# SPDX-License-Identifier: Apache-2.0
"""Plots are well-formed and their points lie where the numbers say."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from sparserefine_ros.evaluation.plots import Axis, Line, draw_lines

SVG = "{http://www.w3.org/2000/svg}"


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    lines = ET.fromstring(svg).iter(f"{SVG}polyline")
    return [[tuple(map(float, p.split(","))) for p in e.get("points", "").split()] for e in lines]


def test_points_are_placed_in_proportion() -> None:
    line = Line("a", [(0.0, 0.0), (1.0, 1.0), (0.25, 0.5)])
    ((low, high, between),) = points_of(draw_lines([line], Axis("x"), Axis("y")))
    assert high[0] > low[0]
    assert high[1] < low[1]  # upwards
    assert between[0] == pytest.approx(0.75 * low[0] + 0.25 * high[0], abs=0.1)
    assert between[1] == pytest.approx((low[1] + high[1]) / 2, abs=0.1)


def test_logarithmic_axis() -> None:
    axis = Axis("nats", 0.001, 10.0, logarithmic=True)
    assert axis.ticks() == pytest.approx([0.001, 0.01, 0.1, 1.0, 10.0])
    assert [axis.place(v) for v in (0.001, 0.01, 0.1, 10.0)] == pytest.approx([0, 0.25, 0.5, 1])
    assert axis.place(1e-9) == 0.0


def test_missing_points_are_left_out_and_dots_are_drawn() -> None:
    line = Line("a", [(0.2, math.nan), (0.4, 0.4), (0.6, 0.5)], marked=True)
    svg = draw_lines([line], Axis("x"), Axis("y"), marker=0.5, diagonal=True)
    assert len(points_of(svg)[0]) == 2
    root = ET.fromstring(svg)
    assert len(list(root.iter(f"{SVG}circle"))) == 2
    assert len(list(root.iter(f"{SVG}line"))) == 2
    assert "nan" not in svg


def test_texts_are_escaped() -> None:
    names = ('<b> & "c"', "x<", "y&")
    svg = draw_lines([Line(names[0], [])], Axis(names[1]), Axis(names[2]))
    texts = [element.text for element in ET.fromstring(svg).iter(f"{SVG}text")]
    assert set(names) <= set(texts)
