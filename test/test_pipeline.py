# SPDX-License-Identifier: Apache-2.0
"""The pipeline against the method written out naively, at full resolution."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import make_tiny_bundle, smooth_picture
from numpy.typing import NDArray
from oracle import DenseUNet
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from sparserefine_ros.bundle import BUNDLE_FILE, Bundle, create_bundle, sealed
from sparserefine_ros.configuration import write_yaml
from sparserefine_ros.errors import (
    BackendError,
    BundleError,
    ConfigurationError,
    DeviceMemoryError,
    ImageError,
)
from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import ALL_MAPS, STAGES, Map, Prediction

MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])
THRESHOLD = 1.0
Picture = NDArray[np.uint8]


@dataclass
class Naive:
    """What the method gives, all [H, W]; probabilities [H, W, C]."""

    dense_probabilities: Tensor
    dense_entropy: Tensor
    probabilities: Tensor
    refined: Tensor

    @property
    def entropy(self) -> Tensor:
        return entropy_of(self.probabilities)


def entropy_of(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp_min(1e-5).log()).sum(-1)


def gate(weights: dict[str, Tensor], dense: Tensor, refined: Tensor) -> Tensor:
    """Fused logits of [..., C] each."""

    def mlp(name: str, x: Tensor) -> Tensor:
        hidden = F.linear(x, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"]).relu()
        return F.linear(hidden, weights[f"{name}.2.weight"], weights[f"{name}.2.bias"])

    evidence = []
    for logits in (dense, refined):
        probabilities = logits.softmax(-1)
        evidence += [probabilities, entropy_of(probabilities)[..., None]]
    share = mlp("gate", torch.cat(evidence, -1)).softmax(-1)
    return mlp("mix", share[..., :1] * dense + share[..., 1:] * refined)


def naive(folder: Path, image: Picture, threshold: float = THRESHOLD) -> Naive:
    """The tiny bundle's method step by step in float64, nothing of the package involved."""
    full = image.shape[:2]
    low = [max(4, round(side * 0.5 / 4) * 4) for side in full]
    shrinks = low[0] <= full[0] and low[1] <= full[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    small = cv2.resize(image, (low[1], low[0]), interpolation=interpolation).reshape(*low, 3)
    pixels = ((small - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32)
    session = onnxruntime.InferenceSession(folder / "dense.onnx")
    (raw,) = session.run(None, {session.get_inputs()[0].name: pixels})
    low_res = F.interpolate(torch.from_numpy(raw).double(), size=low, mode="bilinear")[0]

    rows = [y * low[0] // full[0] for y in range(full[0])]
    columns = [x * low[1] // full[1] for x in range(full[1])]
    dense = low_res[:, rows][:, :, columns]
    dense_probabilities = dense.permute(1, 2, 0).softmax(-1)
    dense_entropy = entropy_of(dense_probabilities)
    refined = dense_entropy > threshold

    weights = {k: v.double() for k, v in load_file(folder / "refiner.safetensors").items()}
    rgb = torch.from_numpy((image - MEAN) / STD).permute(2, 0, 1)
    unet = DenseUNet(
        {k.removeprefix("extractor."): v for k, v in weights.items() if k.startswith("extractor.")},
        "image",
        training=False,
    )
    refined_logits = unet(torch.cat([rgb, dense])[None], refined[None, None])[0]
    gates = {k.removeprefix("ensembler."): v for k, v in weights.items()}
    fused = gate(gates, dense.permute(1, 2, 0), refined_logits.permute(1, 2, 0))
    probabilities = torch.where(refined[..., None], fused.softmax(-1), dense_probabilities)
    return Naive(dense_probabilities, dense_entropy, probabilities, refined)


def arithmetic() -> float:
    """What the sparse engine in use moves probabilities and entropies by."""
    kernels = compiled_kernels()
    return 5e-3 if kernels is not None and kernels.has_bfloat16 else 1e-3


def check_equal(found: Prediction, expected: Naive, *, unsure: float | None = None) -> None:
    """Hold every map against the naive result.

    The pipeline folds norms, in float32 or with products of bfloat16: labels may differ where the
    two best classes are within `unsure`, and blocks where the entropy is that close to the
    threshold would not compare; callers check that there are none of the latter.
    """
    unsure = arithmetic() if unsure is None else unsure
    assert found.labels is not None
    assert found.entropy is not None
    assert found.confidence is not None
    assert found.refined is not None
    assert found.dense_labels is not None
    full = tuple(expected.refined.shape)
    for array, dtype in (
        (found.labels, np.uint8),
        (found.entropy, np.float32),
        (found.confidence, np.uint8),
        (found.refined, np.bool_),
        (found.dense_labels, np.uint8),
    ):
        assert array.dtype == dtype
        assert array.shape == full
        assert array.flags.c_contiguous
    assert np.array_equal(found.refined, expected.refined)
    assert found.refined_pixels == found.candidate_pixels == int(expected.refined.sum())
    assert found.refined_share == pytest.approx(expected.refined.double().mean().item())
    np.testing.assert_allclose(found.entropy, expected.entropy, atol=unsure)
    top = expected.probabilities.amax(-1)
    # Half a level of rounding, and what float32 moves.
    assert (torch.from_numpy(found.confidence) - 255 * top).abs().max() <= 0.5 + 255 * unsure
    for labels, probabilities in (
        (found.labels, expected.probabilities),
        (found.dense_labels, expected.dense_probabilities),
    ):
        best = probabilities.topk(2).values
        sure = best[..., 0] - best[..., 1] > unsure
        assert sure.double().mean() > 0.9 or sure.numel() < 60
        assert torch.equal(torch.from_numpy(labels)[sure].long(), probabilities.argmax(-1)[sure])
        assert labels.max() < 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose dense model is sure of the larger part; do not change it."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "sharp", sharpness=4.0)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    """A pipeline of that bundle; tests that change it use their own."""
    return Pipeline(Bundle.open(folder), PipelineOptions(threads=1))


def fresh(folder: Path, **options: object) -> Pipeline:
    return Pipeline(Bundle.open(folder), PipelineOptions(threads=1, **options))  # type: ignore[arg-type]


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
