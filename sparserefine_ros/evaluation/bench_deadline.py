# SPDX-License-Identifier: Apache-2.0
"""Whether frames end in time while the uncertain area jumps, and what the deadline costs.

Procedural streets; the selector's threshold is set for each frame so that either a little or most
of the picture is uncertain.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.data.street import CLASS_NAMES, StreetScene
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.bench import thresholds_of
from sparserefine_ros.evaluation.measure import Spread, describe_machine
from sparserefine_ros.evaluation.metrics import ConfusionMatrix
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import Prediction

# Uncertain shares of the picture, and for how many frames one may last.
SHARES: Final = (0.02, 0.6)
_LONGEST_RUN: Final = 5
# Frames in which the cost is learnt.
LEARNING: Final = 20
# What a frame may take beyond its deadline.
TOLERANCE: Final = 1.1
_PICTURES: Final = 8


@dataclass(frozen=True)
class DeadlineFigures:
    """One benchmark run.

    Attributes:
        machine: processor, cores, versions.
        bundle: name of the bundle.
        width, height: picture size.
        frames: number of frames, those of learning included.
        budget_ms: the deadline.
        in_time: share of the frames after those of learning within the deadline and a tenth more.
        late: share of them beyond the deadline itself.
        total_ms: time of a frame, after learning.
        dense_ms: time of its dense stage.
        wanted_share, refined_share: what the selector asked for and what was refined.
        miou, miou_unlimited: mean IoU with and without the deadline, on the frames after learning.
    """

    machine: str
    bundle: str
    width: int
    height: int
    frames: int
    budget_ms: float
    in_time: float
    late: float
    total_ms: Spread
    dense_ms: Spread
    wanted_share: float
    refined_share: float
    miou: float
    miou_unlimited: float

    def to_table(self) -> str:
        """For people."""
        shares = " or ".join(f"{share:.0%}" for share in SHARES)
        return (
            f"deadline {self.budget_ms:g} ms: {self.bundle}, {self.width} x {self.height}, "
            f"{self.frames} frames of which {shares} is uncertain, the first {LEARNING} to learn\n"
            f"{self.machine}\n"
            f"within deadline + 10 %: {self.in_time:.2%}; beyond the deadline: {self.late:.2%}\n"
            f"total, median and p10 .. p90: {self.total_ms.median:.1f} ms, "
            f"{self.total_ms.low:.1f} .. {self.total_ms.high:.1f}; "
            f"dense stage {self.dense_ms.median:.1f} ms\n"
            f"wanted {self.wanted_share:.1%}, refined {self.refined_share:.1%} of the picture; "
            f"mIoU {self.miou:.4f}, without deadline {self.miou_unlimited:.4f}\n"
        )


def bench_deadline(
    bundle: Bundle,
    options: PipelineOptions,
    size: tuple[int, int],
    *,
    budget_ms: float,
    frames: int,
) -> DeadlineFigures:
    """Run frames whose uncertain area jumps against a deadline.

    Args:
        bundle: what is timed.
        options: how it is run.
        size: (H, W).
        budget_ms: deadline of the pipeline.
        frames: more than `LEARNING`.

    Raises:
        ConfigurationError: an impossible deadline, too few frames, or a bundle of other classes.
    """
    if not 0.0 < budget_ms < math.inf or frames <= LEARNING:
        raise ConfigurationError(
            f"expected a deadline above 0 ms and more than {LEARNING} frames, got {budget_ms} ms "
            f"and {frames} frames"
        )
    if bundle.class_names != CLASS_NAMES:
        raise ConfigurationError(
            f"expected a bundle with the classes of the procedural street {list(CLASS_NAMES)}, "
            f"{bundle.name} has {list(bundle.class_names)}; what a deadline costs is scored on them"
        )
    samples = [
        StreetScene(-2_000_000 - i).render(2.0 * i, height=size[0], width=size[1])
        for i in tqdm(range(_PICTURES), desc="rendering", unit="frame")
    ]
    pipeline = Pipeline(bundle, options)
    pipeline.selector.max_pixels = 0
    thresholds = thresholds_of(pipeline, [sample.image for sample in samples], SHARES)
    cases = _sequence(frames)
    truths = [sample.labels for sample in samples]
    results = []
    for picture, mode in tqdm(cases, desc=f"{size[1]} x {size[0]}", unit="frame"):
        pipeline.selector.threshold = thresholds[mode]
        results.append(pipeline(samples[picture].image, time_left_ms=budget_ms))
    unlimited = {}
    for picture, mode in set(cases[LEARNING:]):
        pipeline.selector.threshold = thresholds[mode]
        unlimited[picture, mode] = pipeline(samples[picture].image)
    cases, results = cases[LEARNING:], results[LEARNING:]
    times = np.array([result.times.total_ms for result in results])
    return DeadlineFigures(
        machine=describe_machine(),
        bundle=bundle.name,
        width=size[1],
        height=size[0],
        frames=frames,
        budget_ms=budget_ms,
        in_time=float((times <= TOLERANCE * budget_ms).mean()),
        late=float((times > budget_ms).mean()),
        total_ms=Spread.of(list(times)),
        dense_ms=Spread.of([result.times.milliseconds["dense"] for result in results]),
        wanted_share=float(np.mean([result.candidate_pixels for result in results]))
        / (size[0] * size[1]),
        refined_share=float(np.mean([result.refined_share for result in results])),
        miou=_miou(bundle, truths, cases, results),
        miou_unlimited=_miou(bundle, truths, cases, [unlimited[case] for case in cases]),
    )


def _sequence(frames: int) -> list[tuple[int, int]]:
    """(picture, index of its uncertain share) of each frame; runs of random length."""
    chance, mode = random.Random(0), 0
    cases: list[tuple[int, int]] = []
    while len(cases) < frames:
        run = range(chance.randint(1, _LONGEST_RUN))
        cases += [(chance.randrange(_PICTURES), mode) for _ in run]
        mode = 1 - mode
    return cases[:frames]


def _miou(
    bundle: Bundle,
    truths: Sequence[NDArray[np.uint8]],
    cases: Sequence[tuple[int, int]],
    results: Sequence[Prediction],
) -> float:
    confusion = ConfusionMatrix(len(bundle.class_names))
    for (picture, _), result in zip(cases, results, strict=True):
        assert result.labels is not None
        confusion.update(truths[picture], result.labels)
    return confusion.mean_iou()
