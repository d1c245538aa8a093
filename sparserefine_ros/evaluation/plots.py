# SPDX-License-Identifier: Apache-2.0
"""Line plots as SVG text, to stand inside an HTML page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# Told apart with any kind of colour vision (Okabe and Ito, 2008).
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")

_WIDTH: Final = 460
_HEIGHT: Final = 320
_LEFT: Final = 56
_RIGHT: Final = 16
_TOP: Final = 34
_BOTTOM: Final = 46
_LEGEND_STEP: Final = 105


@dataclass(frozen=True)
class Line:
    """A line of a plot.

    Attributes:
        name: for the legend.
        points: (x, y); points with NaN are left out.
        marked: whether each point gets a dot.
    """

    name: str
    points: Sequence[tuple[float, float]]
    marked: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        title: with the unit.
        low, high: its ends; points beyond are drawn at the end.
        logarithmic: whether equal ratios are equally far apart; `low` must then be above 0.
    """

    title: str
    low: float = 0.0
    high: float = 1.0
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """0 at `low`, 1 at `high`."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values within the axis: powers of ten, or fifths of it."""
        if self.logarithmic:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [10.0**power for power in powers]
        return [self.low + (self.high - self.low) * fifth / 5 for fifth in range(6)]


def draw_lines(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    marker: float | None = None,
    diagonal: bool = False,
) -> str:
    """Draw lines over one pair of axes.

    Args:
        lines: drawn in `COLOURS`, in this order.
        x: the axis across.
        y: the axis upwards.
        marker: x of a dashed vertical line; None for none.
        diagonal: whether to draw a dashed line from corner to corner.

    Returns:
        an `<svg>` element.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" font-size="12" '
        f'aria-label="{html.escape(f"{y.title} over {x.title}")}">',
        *_draw_axes(x, y),
    ]
    if diagonal:
        parts.append(_dashed((x.low, y.low), (x.high, y.high), x, y))
    if marker is not None:
        parts.append(_dashed((marker, y.low), (marker, y.high), x, y))
    for index, line in enumerate(lines):
        parts += _draw_line(line, COLOURS[index % len(COLOURS)], x, y)
        parts += _draw_legend_entry(line.name, index)
    return "\n".join([*parts, "</svg>"])


def _at(point: tuple[float, float], x: Axis, y: Axis) -> tuple[float, float]:
    """Place on the sheet, rounded to what can be seen."""
    across = _LEFT + x.place(point[0]) * (_WIDTH - _LEFT - _RIGHT)
    down = _HEIGHT - _BOTTOM - y.place(point[1]) * (_HEIGHT - _TOP - _BOTTOM)
    return round(across, 1), round(down, 1)


def _draw_axes(x: Axis, y: Axis) -> list[str]:
    parts = []
    for tick in x.ticks():
        across, bottom = _at((tick, y.low), x, y)
        parts.append(f'<path d="M{across} {_TOP}V{bottom}" stroke="#ddd"/>')
        parts.append(_text(f"{tick:.4g}", across, bottom + 16, "middle"))
    for tick in y.ticks():
        left, down = _at((x.low, tick), x, y)
        parts.append(f'<path d="M{left} {down}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(_text(f"{tick:.4g}", left - 6, down + 4, "end"))
    middle = (_HEIGHT - _BOTTOM + _TOP) / 2
    parts.append(_text(x.title, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "middle"))
    turned = f'<g transform="translate(14 {middle}) rotate(-90)">{_text(y.title, 0, 0, "middle")}'
    return [*parts, f"{turned}</g>"]


def _draw_line(line: Line, colour: str, x: Axis, y: Axis) -> list[str]:
    points = [p for p in line.points if not (math.isnan(p[0]) or math.isnan(p[1]))]
    places = [_at(point, x, y) for point in points]
    path = " ".join(f"{across},{down}" for across, down in places)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    if line.marked:
        parts += [f'<circle cx="{a}" cy="{d}" r="3" fill="{colour}"/>' for a, d in places]
    return parts


def _draw_legend_entry(name: str, index: int) -> list[str]:
    left, down = _LEFT + index * _LEGEND_STEP, _TOP - 14
    colour = COLOURS[index % len(COLOURS)]
    return [
        f'<path d="M{left} {down - 4}h18" stroke="{colour}" stroke-width="3"/>',
        _text(name, left + 24, down, "start"),
    ]


def _dashed(start: tuple[float, float], end: tuple[float, float], x: Axis, y: Axis) -> str:
    (x1, y1), (x2, y2) = _at(start, x, y), _at(end, x, y)
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#666" stroke-dasharray="5 4"/>'


def _text(text: str, across: float, down: float, anchor: str) -> str:
    return f'<text x="{across}" y="{down}" text-anchor="{anchor}">{html.escape(text)}</text>'
