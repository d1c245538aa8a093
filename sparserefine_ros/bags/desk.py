# SPDX-License-Identifier: Apache-2.0
"""What happens to a frame after the networks: it is scored, written and perhaps kept."""

from __future__ import annotations

from typing import Final

import numpy as np

from sparserefine_ros.bags.frames import BagFrame
from sparserefine_ros.bags.maps import write_maps
from sparserefine_ros.bags.results import BagOptions, FrameRow, WorstFrame
from sparserefine_ros.bags.writer import BagWriter
from sparserefine_ros.data.sample import Sample
from sparserefine_ros.evaluation.frames import FrameEvaluator, FrameResult, Runs
from sparserefine_ros.records import Prediction

# A bag is taken for so many scenes for each picture shown.
_SCENES: Final = 4


class Desk:
    """Scores frames, writes their maps and keeps the worst; `take` runs in one thread.

    Args:
        evaluator: with its models loaded.
        maps: where maps are written; None for nowhere.
        options: of the evaluation.
        frames: number of frames to come, about.
    """

    def __init__(
        self,
        evaluator: FrameEvaluator,
        maps: BagWriter | None,
        options: BagOptions,
        *,
        frames: int,
    ) -> None:
        self.results: list[FrameResult] = []
        self.rows: list[FrameRow] = []
        self._evaluator = evaluator
        self._palette = evaluator.pipeline.bundle.palette
        self._maps = maps
        self._options = options
        # Neighbours in a recording look alike; these would fill the report with one scene.
        self._apart = max(1, frames // (_SCENES * max(1, options.pictures)))
        self._worst: list[WorstFrame] = []  # the worst first

    def take(self, item: tuple[BagFrame, Sample, Runs]) -> None:
        """Finish one frame."""
        frame, sample, runs = item
        prediction = runs.prediction
        result = self._evaluator.score(frame.index, sample, runs)
        assert prediction.entropy is not None
        row = FrameRow(
            index=frame.index,
            stamp=frame.header.text,
            stamp_ns=frame.header.stamp_ns,
            size=prediction.size,
            refined_pixels=prediction.refined_pixels,
            mean_entropy_nats=float(prediction.entropy.mean(dtype=np.float64)),
            budget_hit=prediction.budget_hit,
            score=result.score,
        )
        self.results.append(result)
        self.rows.append(row)
        if self._maps is not None:
            header, palette = frame.header, self._palette
            write_maps(self._maps, header, frame.log_ns, frame.image, prediction, palette)
        self._keep(row, sample, prediction)

    def _keep(self, row: FrameRow, sample: Sample, prediction: Prediction) -> None:
        """Remember a frame among the worst: by mean IoU, or without labels by entropy."""
        badness: float | None = row.mean_entropy_nats
        if self._options.labelled:
            iou = row.score.final_mean_iou
            badness = None if iou is None else -iou
        if badness is None or not self._options.pictures:
            return
        rivals = [kept for kept in self._worst if row.index - kept.score.index < self._apart]
        if not rivals and len(self._worst) == self._options.pictures:
            rivals = [self._worst[-1]]
        if any(kept.badness >= badness for kept in rivals):
            return
        stay = [kept for kept in self._worst if kept not in rivals]
        new = WorstFrame(badness, row.score, sample, prediction)
        self._worst = sorted([*stay, new], key=lambda kept: -kept.badness)

    def worst(self) -> tuple[WorstFrame, ...]:
        """The frames kept, the worst first; of frames close together only the worst."""
        return tuple(self._worst)
