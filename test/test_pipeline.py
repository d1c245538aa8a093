# SPDX-License-Identifier: Apache-2.0
"""The pipeline against the method written out naively, at full resolution."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_bundle, smooth_picture
from written_out import THRESHOLD, Naive, Picture, check_equal, fresh, naive

from sparserefine_ros.bundle import Bundle, create_bundle
from sparserefine_ros.errors import (
    ImageError,
)
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import ALL_MAPS, STAGES, Map, Prediction


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose dense model is sure of the larger part; do not change it."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "sharp", sharpness=4.0)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    """A pipeline of that bundle; tests that change it use their own."""
    return Pipeline(Bundle.open(folder), PipelineOptions(threads=1))


class TestAgainstTheMethodWrittenOut:
    @pytest.mark.parametrize(
        "size",
        [(75, 101), (64, 96), (33, 40), (9, 7), (3, 5), (1, 1), (1, 40), (50, 1), (2, 2)],
        ids=lambda size: f"{size[0]}x{size[1]}",
    )
    def test_every_map(self, folder: Path, pipeline: Pipeline, size: tuple[int, int]) -> None:
        image = smooth_picture(*size, seed=5)
        expected = naive(folder, image)
        assert (expected.dense_entropy - THRESHOLD).abs().min() > 1e-5
        found = pipeline(image, ALL_MAPS)
        assert found.size == size
        assert found.low_res_size == tuple(max(4, round(side / 8) * 4) for side in size)
        assert not found.budget_hit
        check_equal(found, expected)

    def test_the_example_refines_a_part_and_changes_labels(
        self, pipeline: Pipeline, picture: Picture
    ) -> None:
        found = pipeline(picture, ALL_MAPS)
        assert found.labels is not None
        assert found.dense_labels is not None
        assert found.refined is not None
        assert 0.1 < found.refined_share < 0.5
        assert (found.labels != found.dense_labels)[found.refined].mean() > 0.05
        assert np.array_equal(found.labels[~found.refined], found.dense_labels[~found.refined])

    @pytest.mark.parametrize("threshold", [0.0, 0.8, 1.05])
    def test_other_thresholds(self, folder: Path, picture: Picture, threshold: float) -> None:
        expected = naive(folder, picture, threshold)
        assert (expected.dense_entropy - threshold).abs().min() > 1e-5
        check_equal(fresh(folder, entropy_threshold=threshold)(picture, ALL_MAPS), expected)

    def test_frames_of_changing_size(self, folder: Path, pipeline: Pipeline) -> None:
        for seed, size in enumerate([(64, 96), (8, 8), (75, 101), (1, 1), (64, 96)]):
            image = smooth_picture(*size, seed=seed + 10)
            check_equal(pipeline(image, ALL_MAPS), naive(folder, image))


class TestMaps:
    @pytest.mark.parametrize("wanted", [frozenset(), *(frozenset({item}) for item in Map)])
    def test_only_what_was_asked_for(
        self, pipeline: Pipeline, picture: Picture, wanted: frozenset[Map]
    ) -> None:
        everything, some = pipeline(picture, ALL_MAPS), pipeline(picture, wanted)
        for item in Map:
            value = getattr(some, item.value)
            if item in wanted:
                assert np.array_equal(value, getattr(everything, item.value))
            else:
                assert value is None
        assert some.refined_pixels == everything.refined_pixels

    def test_labels_by_default(self, pipeline: Pipeline, picture: Picture) -> None:
        found = pipeline(picture)
        assert found.labels is not None
        assert found.entropy is found.confidence is found.refined is found.dense_labels is None

    def test_later_frames_leave_earlier_results_alone(self, pipeline: Pipeline) -> None:
        first = pipeline(smooth_picture(40, 48, seed=1), ALL_MAPS)
        kept = {item: getattr(first, item.value).copy() for item in Map}
        pipeline(smooth_picture(40, 48, seed=2), ALL_MAPS)
        for item, array in kept.items():
            assert np.array_equal(getattr(first, item.value), array)

    def test_repeatable(self, folder: Path, pipeline: Pipeline, picture: Picture) -> None:
        first, again = pipeline(picture, ALL_MAPS), pipeline(picture, ALL_MAPS)
        other = fresh(folder)(picture, ALL_MAPS)
        for item in Map:
            assert np.array_equal(getattr(first, item.value), getattr(again, item.value))
            assert np.array_equal(getattr(first, item.value), getattr(other, item.value))

    def test_stage_times(self, pipeline: Pipeline, picture: Picture) -> None:
        times = pipeline(picture, ALL_MAPS).times
        assert tuple(times.milliseconds) == STAGES
        assert all(spent > 0 for spent in times.milliseconds.values())
        assert times.total_ms == pytest.approx(sum(times.milliseconds.values()))


class TestNothingToRefine:
    def check_dense(self, found: Prediction, expected: Naive) -> None:
        assert found.entropy is not None
        assert found.labels is not None
        assert found.refined is not None
        assert not found.refined.any()
        assert (found.refined_pixels, found.refined_share) == (0, 0.0)
        assert np.array_equal(found.labels, expected.dense_probabilities.argmax(-1))
        np.testing.assert_allclose(found.entropy, expected.dense_entropy, atol=1e-4)
        for stage in ("plan", "refine", "fusion"):
            assert found.times.milliseconds[stage] == 0.0

    def test_empty_selection_is_the_dense_result(self, folder: Path, picture: Picture) -> None:
        found = fresh(folder, entropy_threshold=math.log(3))(picture, ALL_MAPS)
        assert (found.candidate_pixels, found.budget_hit) == (0, False)
        self.check_dense(found, naive(folder, picture))

    def test_a_budget_below_one_block(self, folder: Path, picture: Picture) -> None:
        found = fresh(folder, max_refined_pixels=1)(picture, ALL_MAPS)
        assert found.candidate_pixels > 0
        assert found.budget_hit
        self.check_dense(found, naive(folder, picture))

    def test_a_bundle_without_refiner(self, tmp_path: Path, picture: Picture) -> None:
        tiny = make_tiny_bundle(tmp_path / "tiny")
        expected = naive(tiny, picture)
        spec = Bundle.open(tiny).spec.model_copy(update={"refiner": None, "selector": None})
        dense = {"dense.onnx": tiny / "dense.onnx"}
        create_bundle(tmp_path / "plain", spec, dense)
        pipeline = fresh(tmp_path / "plain")
        assert pipeline.backends["sparse"] == "none"
        self.check_dense(pipeline(picture, ALL_MAPS), expected)


class TestPictures:
    @pytest.mark.parametrize(
        "image",
        [
            np.zeros((8, 8), np.uint8),
            np.zeros((8, 8, 4), np.uint8),
            np.zeros((8, 8, 3), np.uint16),
            np.zeros((8, 8, 3)),
            np.zeros((0, 8, 3), np.uint8),
            np.zeros((1, 16385, 3), np.uint8),
        ],
        ids=["grey", "rgba", "uint16", "float", "empty", "too-wide"],
    )
    def test_refused_and_then_on_as_before(
        self, pipeline: Pipeline, picture: Picture, image: Picture
    ) -> None:
        before = pipeline(picture, ALL_MAPS)
        with pytest.raises(ImageError, match="expected"):
            pipeline(image)
        after = pipeline(picture, ALL_MAPS)
        assert np.array_equal(before.entropy, after.entropy)  # type: ignore[arg-type]

    def test_another_picture_than_the_dense_model_has_seen(
        self, pipeline: Pipeline, picture: Picture
    ) -> None:
        (found,) = pipeline.run_dense([picture])
        with pytest.raises(ImageError, match="that the dense model has seen"):
            pipeline.refine(picture[:-2], found)

    def test_strides_do_not_matter(self, pipeline: Pipeline, picture: Picture) -> None:
        bgr = picture[:, :, ::-1].copy()
        padded = np.zeros((75, 128, 3), np.uint8)
        padded[:, :101] = picture
        expected = pipeline(picture, ALL_MAPS)
        for view in (bgr[:, :, ::-1], padded[:, :101], np.asfortranarray(picture)):
            assert not view.flags.c_contiguous
            found = pipeline(view, ALL_MAPS)
            for item in Map:
                assert np.array_equal(getattr(found, item.value), getattr(expected, item.value))

    def test_read_only_pictures_work_in_silence(self, pipeline: Pipeline, picture: Picture) -> None:
        # What `numpy.frombuffer` makes of a message's bytes.
        frozen = np.frombuffer(picture.tobytes(), np.uint8).reshape(picture.shape)
        assert not frozen.flags.writeable
        once = torch.is_warn_always_enabled()
        torch.set_warn_always(True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = pipeline(frozen)
        finally:
            torch.set_warn_always(once)
        assert np.array_equal(found.labels, pipeline(picture).labels)  # type: ignore[arg-type]

    def test_the_picture_is_left_alone(self, pipeline: Pipeline, picture: Picture) -> None:
        before = picture.copy()
        pipeline(picture, ALL_MAPS)
        assert np.array_equal(picture, before)
