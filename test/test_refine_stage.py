# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.clock import StageClock
from sparserefine_ros.errors import ModelOutputError
from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.records import DenseOutput, Uncertainty
from sparserefine_ros.refine_stage import CpuRefineStage
from sparserefine_ros.refiner import load_refiner
from sparserefine_ros.sampling import FeatureSampler, SelectedBlocks
from sparserefine_ros.selection import selection_from_mask
from sparserefine_ros.sparse.plan import SparsePlan, build_plan

pytestmark = pytest.mark.usefixtures("engine")


class TestStage:
    def test_equals_the_trained_network_step_by_step(
        self, tiny_bundle: Path, picture: NDArray[np.uint8]
    ) -> None:
        bundle = Bundle.open(tiny_bundle)
        refiner = load_refiner(bundle)
        logits = torch.randn(3, 36, 52, generator=torch.Generator().manual_seed(2))
        mask = torch.from_numpy(np.random.default_rng(1).random((36, 52)) < 0.3)
        selection = selection_from_mask(mask, (75, 101))
        clock = StageClock()
        result = CpuRefineStage(refiner, bundle)(picture, DenseOutput(logits), selection, clock)
        assert result is not None
        assert bundle.spec.refiner is not None
        blocks = SelectedBlocks(selection)
        at = blocks.sample(logits)
        features = FeatureSampler(bundle.spec.refiner)(picture, DenseOutput(logits), blocks)
        plan = build_plan(selection.pixels, (1, 75, 101), 2)
        with torch.no_grad():
            probabilities = refiner.ensembler(at, refiner.extractor(features, plan)).softmax(1)
        top = probabilities.max(1)
        # Folded norms against unfolded ones, in float32 or with products of bfloat16.
        kernels = compiled_kernels()
        moved = 1e-2 if kernels is not None and kernels.has_bfloat16 else 1e-3
        torch.testing.assert_close(result.top_probability, top.values, rtol=moved, atol=moved / 10)
        sure = probabilities.topk(2).values.diff().abs().view(-1) > moved
        assert sure.float().mean() > 0.9
        assert torch.equal(result.labels[sure].long(), top.indices[sure])
        times = clock.times().milliseconds
        assert {stage for stage, spent in times.items() if spent > 0} == {
            "plan",
            "refine",
            "fusion",
        }

    def test_nothing_selected(self, tiny_bundle: Path, picture: NDArray[np.uint8]) -> None:
        bundle = Bundle.open(tiny_bundle)
        selection = selection_from_mask(torch.zeros(36, 52, dtype=torch.bool), (75, 101))
        stage = CpuRefineStage(load_refiner(bundle), bundle)
        assert stage(picture, DenseOutput(torch.zeros(3, 36, 52)), selection, StageClock()) is None

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e30])
    def test_not_finite(
        self,
        value: float,
        tiny_bundle: Path,
        picture: NDArray[np.uint8],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        bundle = Bundle.open(tiny_bundle)
        selection = selection_from_mask(torch.ones(36, 52, dtype=torch.bool), (75, 101))
        stage = CpuRefineStage(load_refiner(bundle), bundle)
        plain = stage._extract

        def extract(features: Tensor, plan: SparsePlan) -> Tensor:
            logits = plain(features, plan)
            logits[7, 1] = value
            return logits

        def run() -> Uncertainty | None:
            return stage(picture, DenseOutput(torch.zeros(3, 36, 52)), selection, StageClock())

        monkeypatch.setattr(stage, "_extract", torch.inference_mode()(extract))
        if value == 1e30:  # its square is not finite, but it is
            assert run() is not None
            return
        with pytest.raises(ModelOutputError, match="the refiner returned NaN or infinity"):
            run()

    def test_the_weights_are_copied(self, tiny_bundle: Path, picture: NDArray[np.uint8]) -> None:
        bundle = Bundle.open(tiny_bundle)
        refiner = load_refiner(bundle)
        selection = selection_from_mask(torch.ones(36, 52, dtype=torch.bool), (75, 101))
        dense = DenseOutput(torch.randn(3, 36, 52, generator=torch.Generator().manual_seed(2)))
        expected = CpuRefineStage(refiner, bundle)(picture, dense, selection, StageClock())
        stage = CpuRefineStage(refiner, bundle)
        with torch.no_grad():
            for parameter in refiner.parameters():
                parameter.zero_()
        found = stage(picture, dense, selection, StageClock())
        assert expected is not None
        assert found is not None
        torch.testing.assert_close(found.entropy, expected.entropy)
