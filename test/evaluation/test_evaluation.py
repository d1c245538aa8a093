# SPDX-License-Identifier: Apache-2.0
"""Joined parts equal the whole, and the scores handed out are those of the counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.evaluation import Evaluation
from sparserefine_ros.evaluation.scores import Parameters, SelectorSetting, Variant
from sparserefine_ros.evaluation.storage import scores_to_json
from sparserefine_ros.records import STAGES


def without_times(evaluation: Evaluation) -> object:
    """Everything that must not depend on how the frames were divided."""
    scores = scores_to_json(evaluation)
    for part in (scores, *scores["variants"].values()):
        del part["latency_ms"]
    frames = [
        dataclasses.replace(f, stage_ms={}, dense_full_stage_ms={}) for f in evaluation.frames
    ]
    return scores, frames, evaluation.setting, evaluation.parameters


class TestMerging:
    def test_parts_equal_the_whole(self, whole: Evaluation, parts: list[Evaluation]) -> None:
        merged = Evaluation.merged(parts)
        assert without_times(merged) == without_times(whole)
        assert without_times(parts[0]) != without_times(whole)
        assert [frame.index for frame in merged.frames] == [0, 1, 2, 3, 4]

    def test_parts_are_left_as_they_were(self, parts: list[Evaluation]) -> None:
        before = parts[0].tally.curve.counts.copy()
        Evaluation.merged(parts)
        assert np.array_equal(parts[0].tally.curve.counts, before)

    def test_a_frame_in_two_parts_is_refused(
        self, whole: Evaluation, parts: list[Evaluation]
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"frame 1 \(tiny <1>\) is in two of them"):
            Evaluation.merged([parts[0], whole])

    def test_parts_of_other_evaluations_are_refused(self, parts: list[Evaluation]) -> None:
        setting = dataclasses.replace(
            parts[1].setting, selector=SelectorSetting("entropy", 0.25, 0)
        )
        other = dataclasses.replace(parts[1], setting=setting)
        with pytest.raises(
            ConfigurationError,
            match=r"selector is entropy above 1\.000 nats.* in one and entropy above 0\.250",
        ):
            Evaluation.merged([parts[0], other])

    def test_parts_of_other_data_are_refused(self, parts: list[Evaluation]) -> None:
        setting = dataclasses.replace(parts[1].setting, data="camvid, train")
        other = dataclasses.replace(parts[1], setting=setting)
        with pytest.raises(ConfigurationError, match=r"data is .* in one and camvid, train in"):
            Evaluation.merged([parts[0], other])

    def test_what_one_part_could_not_count_comes_from_the_other(
        self, whole: Evaluation, parts: list[Evaluation]
    ) -> None:
        unknown = Parameters(None, None, parts[0].parameters.refiner)
        frames = tuple(dataclasses.replace(f, dense_macs=None) for f in parts[0].frames)
        first = dataclasses.replace(
            parts[0], parameters=unknown, frames=frames, notes=("no onnx",), machines=("here",)
        )
        merged = Evaluation.merged([first, parts[1]])
        assert merged.parameters == whole.parameters
        # Some frames' MACs are unknown, so their mean is.
        assert merged.totals(Variant.DENSE_LOW).macs is None
        assert merged.notes == ("no onnx",)
        assert merged.machines == ("here", *parts[1].machines)

    def test_nothing_to_merge(self) -> None:
        with pytest.raises(ConfigurationError, match="at least one part"):
            Evaluation.merged([])


def test_worst_frames_come_first(whole: Evaluation) -> None:
    found = whole.worst_frames(3)
    ious = {frame.index: frame.mean_iou[Variant.REFINED] for frame in whole.frames}
    assert [frame.index for frame in found] == sorted(ious, key=lambda i: ious[i])[:3]
    unlabelled = dataclasses.replace(found[0], mean_iou=dict.fromkeys(Variant, None))
    others = [frame for frame in whole.frames if frame.index != found[0].index]
    evaluation = dataclasses.replace(whole, frames=(unlabelled, *others))
    assert unlabelled not in evaluation.worst_frames(9)
    assert len(evaluation.worst_frames(9)) == 4


def test_times_are_medians_of_the_frames(whole: Evaluation) -> None:
    frames = tuple(
        dataclasses.replace(
            frame,
            stage_ms={stage: float(k * (i + 1)) for k, stage in enumerate(STAGES)},
            dense_full_stage_ms=dict.fromkeys(STAGES, 2.0),
        )
        for i, frame in enumerate(whole.frames)
    )
    evaluation = dataclasses.replace(whole, frames=frames)
    times = evaluation.stage_times(Variant.REFINED)
    assert times["entropy"].median == 3 * STAGES.index("entropy")
    assert times["total"].median == 3 * sum(range(len(STAGES)))
    assert evaluation.totals(Variant.REFINED).latency_ms == times["total"].median
    assert evaluation.totals(Variant.DENSE_FULL).latency_ms == 2.0 * len(STAGES)
    spent = [STAGES.index(stage) for stage in ("resize", "dense", "entropy", "maps")]
    assert evaluation.totals(Variant.DENSE_LOW).latency_ms == 3 * sum(spent)


def test_macs_and_parameters_add_up(whole: Evaluation) -> None:
    low, full, refined = (whole.totals(variant) for variant in Variant)
    assert low.macs is not None
    assert full.macs is not None
    assert refined.macs == pytest.approx(low.macs + whole.refiner_macs())
    assert whole.refiner_macs() > 0
    assert full.macs > 3 * low.macs
    assert low.parameters == full.parameters == 8 * 3 * 9 + 8 + 3 * 8 + 3
    assert refined.parameters == low.parameters + whole.parameters.refiner
