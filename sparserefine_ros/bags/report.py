# SPDX-License-Identifier: Apache-2.0
"""The folder of results of a bag.

All but the times is the same in every run: `metrics.json` and `frames.csv`, and the bag of maps.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from sparserefine_ros.bags.maps import maps_folder
from sparserefine_ros.bags.page import build_page
from sparserefine_ros.bags.results import BagResult
from sparserefine_ros.bags.writer import no_written_bag
from sparserefine_ros.bundle import Bundle
from sparserefine_ros.evaluation.measure import Spread, describe_machine
from sparserefine_ros.evaluation.pictures import draw_frame, draw_legend_file, foreign_pictures
from sparserefine_ros.evaluation.scores import Variant
from sparserefine_ros.evaluation.storage import scores_to_json, write_json
from sparserefine_ros.files import write_text_whole
from sparserefine_ros.records import STAGES

METRICS: Final = "metrics.json"
FRAMES: Final = "frames.csv"
TIMING: Final = "timing.json"
FRAME_TIMING: Final = "timing.csv"
SCORES: Final = "scores.json"
PAGE: Final = "report.html"
PICTURES: Final = "pictures"
_FILES: Final = frozenset({METRICS, FRAMES, TIMING, FRAME_TIMING, SCORES, PAGE})


def no_results(folder: Path) -> str:
    """What keeps a folder from being one of results, in words; empty where it is one."""
    if not (folder / METRICS).is_file():
        return f"there is no {METRICS}"
    for path in sorted(folder.iterdir()):
        if path.name == PICTURES and path.is_dir():
            if others := foreign_pictures(path):
                return f"it also holds {PICTURES}/{others[0]}"
        elif path == maps_folder(folder):
            if found := no_written_bag(path):
                return f"{path.name} is not its own, {found}"
        elif path.name not in _FILES:
            return f"it also holds {path.name}"
    return ""


def write_results(result: BagResult, bundle: Bundle, folder: Path) -> None:
    """Write everything but the bag of maps.

    Args:
        result: of the bag.
        bundle: as evaluated.
        folder: exists.

    Raises:
        SparseRefineError: a file cannot be written.
    """
    pictures = folder / PICTURES
    drawn = []
    if result.worst:
        pictures.mkdir()
        draw_legend_file(bundle, pictures)
        drawn = [
            draw_frame(each.score, each.sample, each.prediction, bundle, pictures)
            for each in result.worst
        ]
    write_text_whole(folder / FRAMES, _table(_FRAME_HEAD, _frame_rows(result)))
    write_text_whole(folder / FRAME_TIMING, _table(_TIME_HEAD, _time_rows(result)))
    write_text_whole(folder / TIMING, _json(timing_to_json(result)))
    write_json(result.evaluation, folder / SCORES)
    write_text_whole(folder / PAGE, build_page(result, drawn, pictures=PICTURES))
    write_text_whole(folder / METRICS, _json(metrics_to_json(result)))


def metrics_to_json(result: BagResult) -> dict[str, Any]:
    """Everything but times, as plain values; `scores` is None without any label."""
    rows = result.rows
    ious = [row.score.final_mean_iou for row in rows]
    labelled = sum(iou is not None for iou in ious)
    setting = result.evaluation.setting
    return {
        "bag": result.bag,
        "part": result.part or None,
        "image_topic": result.image_topic,
        "labels": result.labels,
        "bundle": setting.bundle,
        "digest": setting.digest,
        "selector": str(setting.selector),
        "messages": result.counts.to_json(),
        "damage": list(result.damage),
        "frames": len(rows),
        "labelled_frames": labelled,
        "unusable_labels": result.unusable_labels,
        "refined_share": float(np.mean([row.score.refined_share for row in rows])),
        "refined_pixels": float(np.mean([row.refined_pixels for row in rows])),
        "budget_hits": sum(row.budget_hit for row in rows),
        "mean_entropy_nats": float(np.mean([row.mean_entropy_nats for row in rows])),
        "scores": scores_to_json(result.evaluation, times=False) if labelled else None,
    }


def timing_to_json(result: BagResult) -> dict[str, Any]:
    """Frame rate over everything, and latencies of the pipeline."""
    totals = [sum(row.score.stage_ms.values()) for row in result.rows]
    stages = {
        stage: Spread.of([row.score.stage_ms[stage] for row in result.rows]).median
        for stage in STAGES
    }
    percentiles = (50, 90, 99, 100)
    values = np.percentile(totals, percentiles).tolist()
    return {
        "frames": len(result.rows),
        "seconds": round(result.seconds, 3),
        "streams": result.streams,
        "threads": result.threads,
        "frames_per_second": round(len(result.rows) / max(result.seconds, 1e-9), 2),
        "latency_ms": {f"p{p}": round(v, 3) for p, v in zip(percentiles, values, strict=True)},
        "median_stage_ms": {stage: round(ms, 3) for stage, ms in stages.items()},
        "machine": describe_machine(),
    }


_FRAME_HEAD: Final = (
    "index", "stamp", "width", "height", "refined_pixels", "refined_share", "mean_entropy_nats",
    "budget_hit", "mean_iou", "mean_iou_dense_low",
)  # fmt: skip
_TIME_HEAD: Final = ("index", "stamp", "latency_ms", *(f"{stage}_ms" for stage in STAGES))


def _frame_rows(result: BagResult) -> Iterable[Sequence[object]]:
    for row in result.rows:
        final, dense = row.score.final_mean_iou, row.score.mean_iou[Variant.DENSE_LOW]
        height, width = row.size
        yield (
            row.index, row.stamp, width, height, row.refined_pixels, _cell(row.score.refined_share),
            _cell(row.mean_entropy_nats), int(row.budget_hit), _cell(final), _cell(dense),
        )  # fmt: skip


def _time_rows(result: BagResult) -> Iterable[Sequence[object]]:
    for row in result.rows:
        times = [row.score.stage_ms[stage] for stage in STAGES]
        yield row.index, row.stamp, f"{sum(times):.3f}", *(f"{ms:.3f}" for ms in times)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _json(content: object) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
