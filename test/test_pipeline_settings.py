# SPDX-License-Identifier: Apache-2.0
"""Settings of the pipeline, and deadlines."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_bundle, smooth_picture
from written_out import Picture, check_equal, fresh, naive

from sparserefine_ros.bundle import BUNDLE_FILE, Bundle, sealed
from sparserefine_ros.configuration import write_yaml
from sparserefine_ros.errors import (
    BackendError,
    BundleError,
    ConfigurationError,
    DeviceMemoryError,
)
from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import ALL_MAPS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose dense model is sure of the larger part; do not change it."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "sharp", sharpness=4.0)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    """A pipeline of that bundle; tests that change it use their own."""
    return Pipeline(Bundle.open(folder), PipelineOptions(threads=1))


class TestSettings:
    def test_start_from_the_bundle(self, folder: Path) -> None:
        pipeline = fresh(folder)
        assert (pipeline.entropy_threshold, pipeline.max_refined_pixels) == (1.0, 0)

    def test_options_win(self, folder: Path) -> None:
        pipeline = fresh(folder, entropy_threshold=0.5, max_refined_pixels=700)
        assert (pipeline.entropy_threshold, pipeline.max_refined_pixels) == (0.5, 700)

    def test_threshold_changes_between_frames(self, folder: Path, picture: Picture) -> None:
        pipeline = fresh(folder)
        shares = []
        for threshold in (1.05, 0.8, 0.0):
            pipeline.entropy_threshold = threshold
            assert pipeline.entropy_threshold == threshold
            found = pipeline(picture, ALL_MAPS)
            check_equal(found, naive(folder, picture, threshold))
            shares.append(found.refined_share)
        assert shares == sorted(set(shares))
        assert shares[-1] == 1.0

    def test_budget_changes_between_frames(self, folder: Path, picture: Picture) -> None:
        pipeline = fresh(folder)
        everything = pipeline(picture, ALL_MAPS)
        for budget in (everything.refined_pixels // 2, 100):
            pipeline.max_refined_pixels = budget
            found = pipeline(picture, ALL_MAPS)
            assert budget - 9 <= found.refined_pixels <= budget
            assert found.budget_hit
            assert found.candidate_pixels == everything.refined_pixels
            assert found.refined is not None
            assert found.refined.sum() == found.refined_pixels
            assert everything.refined is not None
            assert not (found.refined & ~everything.refined).any()
            entropy = naive(folder, picture).dense_entropy
            kept = entropy[torch.from_numpy(found.refined)]
            left = entropy[torch.from_numpy(everything.refined & ~found.refined)]
            assert kept.min() >= left.max() - 1e-5
        pipeline.max_refined_pixels = everything.refined_pixels
        assert not pipeline(picture, ALL_MAPS).budget_hit
        pipeline.max_refined_pixels = 0
        assert pipeline(picture).refined_pixels == everything.refined_pixels

    def test_memory_runs_out_for_one_frame(
        self, folder: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The frame keeps its dense result, the next one is refined again."""
        pipeline = fresh(folder)
        expected = pipeline(picture, ALL_MAPS)

        def fail(*arguments: object) -> None:
            raise DeviceMemoryError("expected memory")

        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "_refine", fail)
            found = pipeline(picture, ALL_MAPS)
        assert found.unrefined == "expected memory"
        assert (found.refined_pixels, found.budget_hit) == (0, False)
        assert found.candidate_pixels == expected.candidate_pixels
        assert np.array_equal(found.labels, expected.dense_labels)
        assert found.refined is not None
        assert not found.refined.any()
        after = pipeline(picture, ALL_MAPS)
        assert after.unrefined == ""
        assert np.array_equal(after.labels, expected.labels)

    @pytest.mark.parametrize("nats", [-0.1, 1.2, math.inf, math.nan])
    def test_impossible_thresholds(self, folder: Path, nats: float) -> None:
        pipeline = fresh(folder)
        message = r"0 .. log\(classes\) = 1.099 nats, got "
        with pytest.raises(ConfigurationError, match=message):
            pipeline.entropy_threshold = nats
        assert pipeline.entropy_threshold == 1.0
        with pytest.raises(ConfigurationError, match=message):
            fresh(folder, entropy_threshold=nats)

    def test_impossible_budget(self, folder: Path) -> None:
        pipeline = fresh(folder)
        with pytest.raises(ConfigurationError, match="got -1"):
            pipeline.max_refined_pixels = -1
        assert pipeline.max_refined_pixels == 0
        with pytest.raises(ConfigurationError, match="got -1"):
            fresh(folder, max_refined_pixels=-1)

    def test_impossible_options(self, folder: Path) -> None:
        bundle = Bundle.open(folder)
        for threads in (-2, 1025):
            with pytest.raises(ConfigurationError, match=f"threads of 0 .. 1024, got {threads}"):
                Pipeline(bundle, PipelineOptions(threads=threads))
        with pytest.raises(BackendError, match="got 'caffe'"):
            Pipeline(bundle, PipelineOptions(backend="caffe"))
        with pytest.raises(BackendError, match="got 'abacus'"):
            Pipeline(bundle, PipelineOptions(device="abacus"))

    def test_weights_that_do_not_fit(self, tmp_path: Path) -> None:
        tiny = make_tiny_bundle(tmp_path / "tiny")
        spec = Bundle.open(tiny).spec
        assert spec.refiner is not None
        spec = spec.model_copy(
            update={"refiner": spec.refiner.model_copy(update={"widths": (8, 16)})}
        )
        write_yaml(tiny / BUNDLE_FILE, sealed(spec, tiny), heading="wrong widths")
        with pytest.raises(BundleError, match="does not fit the refiner section"):
            fresh(tiny)

    def test_backends_are_named(self, pipeline: Pipeline) -> None:
        expected = "onnxruntime CPU, 1 threads (auto: device is cpu)"
        assert pipeline.backends["dense"] == expected
        kernels = compiled_kernels()
        engine = "pytorch"
        if kernels:
            native = kernels.has_bfloat16
            engine = f"{'compiled-bfloat16' if native else 'compiled'} ({kernels.name})"
        assert pipeline.backends["sparse"] == f"{engine}, 1 threads"

    def test_the_sparse_engine_is_chosen_by_name(self, folder: Path) -> None:
        chosen = fresh(folder, sparse_backend="pytorch")
        assert chosen.backends["sparse"] == "pytorch, 1 threads"
        with pytest.raises(BackendError, match="expected a sparse engine of auto, compiled"):
            fresh(folder, sparse_backend="minkowski")


class TestDeadline:
    def test_without_time_nothing_is_refined(self, folder: Path) -> None:
        pipeline, picture = fresh(folder), smooth_picture(40, 56)
        free = pipeline(picture)
        late = pipeline(picture, time_left_ms=0.0)
        assert free.affordable_pixels is None
        assert free.refined_pixels > 0
        assert (late.affordable_pixels, late.refined_pixels, late.budget_hit) == (0, 0, True)
        assert late.candidate_pixels == free.candidate_pixels

    def test_with_time_enough_it_changes_nothing(self, folder: Path) -> None:
        pipeline, picture = fresh(folder), smooth_picture(40, 56)
        free = pipeline(picture)
        timed = pipeline(picture, time_left_ms=1e6)
        assert timed.affordable_pixels is not None
        assert timed.refined_pixels == free.refined_pixels
        np.testing.assert_array_equal(timed.labels, free.labels)

    def test_the_tighter_of_budget_and_deadline_holds(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pipeline, picture = fresh(folder, max_refined_pixels=100), smooth_picture(40, 56)
        monkeypatch.setattr(pipeline.pixel_cost, "affordable", lambda left_ms: 40)
        assert 0 < pipeline(picture, time_left_ms=1.0).refined_pixels <= 40
        monkeypatch.setattr(pipeline.pixel_cost, "affordable", lambda left_ms: 4000)
        assert 40 < pipeline(picture, time_left_ms=1.0).refined_pixels <= 100
