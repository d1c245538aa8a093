# SPDX-License-Identifier: Apache-2.0
"""An evaluation as one HTML page that needs nothing but the pictures beside it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sparserefine_ros.evaluation.calibration import BINS
from sparserefine_ros.evaluation.evaluation import Evaluation, Totals
from sparserefine_ros.evaluation.pictures import LEGEND_FILE, FramePictures
from sparserefine_ros.evaluation.plots import Axis, Line, draw_lines
from sparserefine_ros.evaluation.scores import Variant
from sparserefine_ros.evaluation.text import describe_selection, percent

_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2em auto; max-width: 1500px;
  padding: 0 1em; }
h1, h2 { line-height: 1.2; }
table { border-collapse: collapse; margin: 0.5em 0; }
th, td { padding: 0.25em 0.8em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.plots { display: flex; flex-wrap: wrap; gap: 1.5em; }
.plots.four { gap: 0.5em; } .plots.four svg { width: 24%; min-width: 320px; height: auto; }
.frame { display: grid; grid-template-columns: repeat(6, 1fr); gap: 6px; margin-bottom: 1.2em; }
.frame h3 { grid-column: 1 / -1; margin: 0.4em 0 0; font-size: 1em; font-weight: 600; }
figure { margin: 0; }
figcaption { color: #555; font-size: 0.85em; }
.frame img { width: 100%; display: block; }
.fixed { color: #00875f; } .broken { color: #d55e00; } .still { color: #777; }
.note { color: #555; }
"""

_GENERATOR: Final = "sparserefine evaluate"
_HEAD: Final = 1000  # characters that hold it


def build_page(evaluation: Evaluation, drawn: Sequence[FramePictures], *, pictures: str) -> str:
    """Build the page.

    Args:
        evaluation: what is reported.
        drawn: pictures of the worst frames; may be empty.
        pictures: folder beside the page that holds their files.

    Returns:
        HTML text, UTF-8.
    """
    title = f"{evaluation.setting.bundle} on {evaluation.data or 'labelled frames'}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        *_setting(evaluation),
        "<h2>Summary</h2>",
        summary_table(evaluation),
        "<h2>Classes</h2>",
        class_table(evaluation),
        "<h2>Selection and calibration</h2>",
        *selection_plots(evaluation),
        "<h2>Time</h2>",
        *_times(evaluation),
        "<h2>Worst frames</h2>",
        *frame_pictures(
            drawn,
            pictures=pictures,
            order=f"By mean IoU of {evaluation.final.value}, lowest first.",
        ),
    ]
    return whole_page(title, body, generator=_GENERATOR)


def is_evaluation_page(path: Path) -> bool:
    """Whether a file is a page of `build_page`."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return _GENERATOR in file.read(_HEAD)
    except OSError:
        return False


def whole_page(title: str, body: Iterable[str], *, generator: str) -> str:
    """HTML text of a page with this title and these elements; `generator` made it."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta name="generator" content="{generator}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def _setting(evaluation: Evaluation) -> Iterable[str]:
    setting = evaluation.setting
    yield paragraph(f"{describe_selection(evaluation)}.")
    full = f" Full resolution: {setting.dense_full}." if setting.dense_full else ""
    yield paragraph(f"Bundle digest {setting.digest}.{full}", "note")
    yield paragraph(f"Measured on {'; '.join(evaluation.machines)}.", "note")
    for note in evaluation.notes:
        yield paragraph(note, "note")


def summary_table(evaluation: Evaluation) -> str:
    """The scores of each variant over all frames and classes."""
    refiner, refiner_macs = evaluation.parameters.refiner, evaluation.refiner_macs()
    head = [
        "", "mean IoU, %", "boundary mean IoU, %", "pixel accuracy, %", "small objects found, %",
        "calibration error, %", "latency, ms", "GMACs per frame", "parameters, M",
    ]  # fmt: skip
    rows = [
        [variant.value, *_total_cells(evaluation.totals(variant))]
        for variant in evaluation.setting.variants
    ]
    if refiner:
        macs = "-" if refiner_macs is None else f"{refiner_macs / 1e9:.2f}"
        rows.append(["of that, refiner", *[""] * 6, macs, f"{refiner / 1e6:.2f}"])
    return table(head, rows)


def _total_cells(totals: Totals) -> list[str]:
    shares = (
        totals.mean_iou,
        totals.boundary_mean_iou,
        totals.pixel_accuracy,
        totals.small_object_recall,
        totals.calibration_error,
    )
    return [
        *map(percent, shares),
        f"{totals.latency_ms:.1f}",
        "-" if totals.macs is None else f"{totals.macs / 1e9:.2f}",
        "-" if totals.parameters is None else f"{totals.parameters / 1e6:.2f}",
    ]


def class_table(evaluation: Evaluation) -> str:
    """The scores of each class in each variant."""
    variants = evaluation.setting.variants
    names = [variant.value for variant in variants]
    head = ["IoU, %", *names, *(f"boundary, {name}" for name in names), "small objects"]
    head += [f"found, {name}" for name in names]
    rows = []
    for scores in zip(*(evaluation.classes(variant) for variant in variants), strict=True):
        cells = [percent(row.iou) for row in scores]
        cells += [percent(row.boundary_iou) for row in scores]
        cells.append(str(scores[0].small_objects))
        cells += [percent(row.small_object_recall) for row in scores]
        rows.append([scores[0].name, *cells])
    return table(head, rows)


def selection_plots(evaluation: Evaluation) -> Iterable[str]:
    """Selections at other thresholds, what they buy, and calibration."""
    curve = evaluation.tally.curve
    scores, nats = curve.scores(), curve.thresholds.tolist()
    # A logarithmic axis has no place for the first threshold, which is 0.
    swept = list(zip(nats, scores, strict=True))[1:]
    lines = [
        Line("density", [(t, s.density) for t, s in swept]),
        Line("recall", [(t, s.recall) for t, s in swept]),
        Line("precision", [(t, s.precision) for t, s in swept if s.density > 0]),
    ]
    nats_axis = Axis("entropy threshold, nats", nats[1], nats[-1], logarithmic=True)
    selector = evaluation.setting.selector
    in_use = selector.threshold if selector.kind == "entropy" and selector.threshold > 0 else None
    chosen = evaluation.tally.selection
    trade = [
        Line("recall", [(s.density, s.recall) for s in scores]),
        Line("as run", [(chosen.density, chosen.recall)], marked=True),
    ]
    reliability = [
        Line(variant.value, _reliability(evaluation, variant), marked=True)
        for variant in evaluation.setting.variants
    ]
    plots = (
        draw_lines(lines, nats_axis, Axis("share"), marker=in_use),
        draw_lines(trade, Axis("density"), Axis("selector recall"), diagonal=True),
        draw_lines(reliability, Axis("confidence"), Axis("accuracy"), diagonal=True),
    )
    yield f'<div class="plots">{"".join(plots)}</div>'
    yield paragraph(
        "Left: selections at other thresholds, without a budget; dashed, the threshold in use. "
        "Middle: what a density buys; dashed, a random selection. Right: accuracy in "
        f"{BINS} ranges of confidence; dashed, honest confidence.",
        "note",
    )


def _reliability(evaluation: Evaluation, variant: Variant) -> list[tuple[float, float]]:
    bins = evaluation.tally.variants[variant].calibration.bins()
    return [(part.confidence, part.accuracy) for part in bins if part.pixels]


def _times(evaluation: Evaluation) -> Iterable[str]:
    full = Variant.DENSE_FULL in evaluation.setting.variants
    shown = [evaluation.final, *([Variant.DENSE_FULL] if full else [])]
    times = [evaluation.stage_times(variant) for variant in shown]
    head = ["ms, median (10th, 90th percentile)", *(variant.value for variant in shown)]
    rows = [
        [
            stage,
            *(f"{t[stage].median:.1f} ({t[stage].low:.1f}, {t[stage].high:.1f})" for t in times),
        ]
        for stage in times[0]
    ]
    yield table(head, rows)
    yield paragraph(
        "Taken during the evaluation, which asks for more maps than the node and may run several "
        "processes at once; for timings use sparserefine bench.",
        "note",
    )


def frame_pictures(drawn: Sequence[FramePictures], *, pictures: str, order: str) -> Iterable[str]:
    """Frames in pictures, with the legend of their colours.

    Args:
        drawn: the frames; may be empty.
        pictures: folder beside the page that holds their files.
        order: of the frames, as a sentence.
    """
    if not drawn:
        yield paragraph("No pictures were drawn.", "note")
        return
    changes = (
        'Changes: <b class="fixed">green</b>, refinement put right; <b class="broken">red</b>, '
        'refinement got wrong; <b class="still">grey</b>, wrong before and after.'
    )
    scored = any("changes" in each.files for each in drawn)
    yield (
        f"<p>{html.escape(order)} White outlines: refined. {changes if scored else ''}</p>"
        f'<p><img src="{_link(pictures, LEGEND_FILE)}" alt="colours of the classes"></p>'
    )
    for each in drawn:
        scores = [
            f"{variant.value} {iou:.1%}"
            for variant, iou in each.frame.mean_iou.items()
            if iou is not None
        ]
        heading = f"{each.frame.name}: " + (f"mean IoU {', '.join(scores)}; " if scores else "")
        heading += f"{each.frame.refined_share:.1%} of the pixels refined"
        figures = "".join(
            _figure(_link(pictures, file), f"{each.frame.name} {caption}", caption)
            for caption, file in each.files.items()
        )
        yield f'<div class="frame"><h3>{html.escape(heading)}</h3>{figures}</div>'


def _figure(link: str, text: str, caption: str) -> str:
    return (
        f'<figure><a href="{link}"><img src="{link}" alt="{html.escape(text)}" loading="lazy">'
        f"</a><figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _link(folder: str, file: str) -> str:
    return html.escape(f"{quote(folder)}/{quote(file)}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text cells."""
    lines = [_table_row("th", head), *(_table_row("td", row) for row in rows)]
    return f"<table>\n{chr(10).join(lines)}\n</table>"


def _table_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of text; `kind` is its class, such as "note"."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"
