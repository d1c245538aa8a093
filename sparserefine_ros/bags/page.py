# SPDX-License-Identifier: Apache-2.0
"""A bag's results as one HTML page that needs nothing but the pictures beside it."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from sparserefine_ros.bags.results import BagResult, FrameRow
from sparserefine_ros.evaluation.page import (
    class_table,
    frame_pictures,
    paragraph,
    selection_plots,
    summary_table,
    table,
    whole_page,
)
from sparserefine_ros.evaluation.pictures import FramePictures
from sparserefine_ros.evaluation.plots import Axis, Line, draw_lines
from sparserefine_ros.evaluation.scores import Variant
from sparserefine_ros.records import STAGES

# More than the pixels of a plot cannot be seen.
_MOST_POINTS: Final = 400
_ROUND: Final = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def build_page(result: BagResult, drawn: Sequence[FramePictures], *, pictures: str) -> str:
    """Build the page.

    Args:
        result: what is reported.
        drawn: pictures of the worst frames; may be empty.
        pictures: folder beside the page that holds their files.

    Returns:
        HTML text, UTF-8.
    """
    title = f"{result.evaluation.setting.bundle} on bag {result.bag}"
    labelled = _labelled(result) > 0
    body = [f"<h1>{html.escape(title)}</h1>", *_setting(result), *_warnings(result)]
    if labelled:
        body += ["<h2>Summary</h2>", summary_table(result.evaluation)]
    body += ["<h2>Over time</h2>", *_over_time(result)]
    if labelled:
        body += ["<h2>Classes</h2>", class_table(result.evaluation)]
        body += ["<h2>Selection and calibration</h2>", *selection_plots(result.evaluation)]
    order = (
        f"By mean IoU of {result.evaluation.final.value}, lowest first"
        if labelled
        else "By mean entropy, highest first"
    )
    order += "; of pictures close together only the worst."
    body += ["<h2>Worst frames</h2>", *frame_pictures(drawn, pictures=pictures, order=order)]
    body += ["<h2>Messages</h2>", _messages(result), "<h2>Time</h2>", *_times(result)]
    return whole_page(title, body, generator="sparserefine bag evaluate")


def _labelled(result: BagResult) -> int:
    return sum(_iou(row) is not None for row in result.rows)


def _iou(row: FrameRow) -> float | None:
    return row.score.final_mean_iou


def _setting(result: BagResult) -> Iterable[str]:
    rows, setting = result.rows, result.evaluation.setting
    labelled = _labelled(result)
    source = {"": "no labels", "folder": f"labels from a folder for {labelled}"}.get(
        result.labels, f"labels from {result.labels} for {labelled}"
    )
    share = float(np.mean([row.score.refined_share for row in rows]))
    entropy = float(np.mean([row.mean_entropy_nats for row in rows]))
    yield paragraph(
        f"{len(rows)} pictures from {result.image_topic}, {source}. "
        f"Refined: {share:.1%} of the pixels, mean entropy {entropy:.3f} nats."
    )
    yield paragraph(f"Selector: {setting.selector}. Bundle digest {setting.digest}.", "note")
    for note in result.evaluation.notes:
        yield paragraph(note, "note")


def _warnings(result: BagResult) -> Iterable[str]:
    """What a reader must know before trusting the numbers."""
    counts = result.counts
    missing, rejected = counts.missing, sum(counts.rejected.values())
    labelled = _labelled(result)
    found = [
        *result.damage,
        f"{missing} of {counts.expected} messages are missing" if missing else "",
        f"only {labelled} of {len(result.rows)} pictures have labels"
        if result.labels and labelled < len(result.rows)
        else "",
        f"{rejected} pictures could not be used: {counts.first_rejection}" if rejected else "",
        f"{result.unusable_labels} label images could not be used"
        if result.unusable_labels
        else "",
        f"{counts.stamps_back} pictures are stamped earlier than the one before"
        if counts.stamps_back
        else "",
        f"the pictures come in {len(counts.sizes)} sizes" if len(counts.sizes) > 1 else "",
        f"the pictures come in {len(counts.encodings)} encodings"
        if len(counts.encodings) > 1
        else "",
    ]
    for text in filter(None, found):
        yield f'<p class="broken">{html.escape(text)}</p>'


def _over_time(result: BagResult) -> Iterable[str]:
    seconds, title = _axis_of_time(result.rows)
    axis = Axis(title, 0.0, _round_up(seconds[-1]))
    shares = [row.score.refined_share for row in result.rows]
    entropies = [row.mean_entropy_nats for row in result.rows]
    latencies = [sum(row.score.stage_ms.values()) for row in result.rows]
    plots = [
        _plot(seconds, {"refined": shares}, axis, "refined share"),
        _plot(seconds, {"mean": entropies}, axis, "mean entropy, nats"),
    ]
    if _labelled(result):
        variants = {
            variant.value: [_number(row.score.mean_iou[variant]) for row in result.rows]
            for variant in result.evaluation.setting.variants
        }
        plots.insert(0, _plot(seconds, variants, axis, "mean IoU", high=1.0))
    plots.append(_plot(seconds, {"latency": latencies}, axis, "pipeline latency, ms"))
    yield f'<div class="plots four">{"".join(plots)}</div>'
    thinned = -(-len(seconds) // _MOST_POINTS)
    if thinned > 1:
        yield paragraph(f"Each point is the mean of {thinned} pictures.", "note")


def _axis_of_time(rows: Sequence[FrameRow]) -> tuple[list[float], str]:
    """Seconds since the first picture, or its number where stamps do not ascend."""
    stamps = [row.stamp_ns for row in rows]
    if all(later > earlier for earlier, later in itertools.pairwise(stamps)):
        return [(stamp - stamps[0]) / 1e9 for stamp in stamps], "seconds since the first picture"
    return [float(number) for number in range(len(rows))], "number of the picture"


def _plot(
    seconds: Sequence[float],
    series: dict[str, list[float]],
    axis: Axis,
    title: str,
    *,
    high: float | None = None,
) -> str:
    lines = [Line(name, _thin(seconds, values)) for name, values in series.items()]
    known = [y for line in lines for _, y in line.points if not math.isnan(y)]
    return draw_lines(lines, axis, Axis(title, 0.0, high or _round_up(max(known, default=1.0))))


def _thin(seconds: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    step = -(-len(values) // _MOST_POINTS)
    points = []
    for start in range(0, len(values), step):
        known = [v for v in values[start : start + step] if not math.isnan(v)]
        if known:
            points.append((seconds[start], float(np.mean(known))))
    return points


def _round_up(value: float) -> float:
    """The next round number; a fifth of it is round, too."""
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in _ROUND if value <= power * step * (1 + 1e-9))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _messages(result: BagResult) -> str:
    counts = result.counts
    rows = [["announced", str(counts.announced)], ["read", str(counts.messages)]]
    rows.append(["usable pictures", str(counts.frames)])
    rows += [[f"rejected: {reason}", str(n)] for reason, n in sorted(counts.rejected.items())]
    rows += [[f"encoding {name}", str(n)] for name, n in sorted(counts.encodings.items())]
    rows += [[f"size {name}", str(n)] for name, n in sorted(counts.sizes.items())]
    rows.append(["stamps that go back", str(counts.stamps_back)])
    rows.append(["recorded out of order", str(counts.recorded_back)])
    return table(["messages", "number"], rows)


def _times(result: BagResult) -> Iterable[str]:
    variant: Variant = result.evaluation.final
    times = result.evaluation.stage_times(variant)
    rows = [
        [stage, f"{times[stage].median:.1f} ({times[stage].low:.1f}, {times[stage].high:.1f})"]
        for stage in (*STAGES, "total")
    ]
    yield table(["pipeline, ms", "median (10th, 90th percentile)"], rows)
    rate = len(result.rows) / max(result.seconds, 1e-9)
    threads = "1 thread" if result.threads == 1 else f"{result.threads} threads"
    together = (
        f" {result.streams} pictures at a time, on {threads} each: a single one, as in the node, "
        "is done sooner than the table says."
    )
    yield paragraph(
        f"{rate:.1f} pictures per second with reading, scoring and writing, "
        f"on {'; '.join(result.evaluation.machines)}.{together if result.streams > 1 else ''}",
        "note",
    )
