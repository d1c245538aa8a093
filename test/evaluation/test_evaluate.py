# SPDX-License-Identifier: Apache-2.0
"""Scores of a bundle against a count done pixel by pixel, in one process and in two."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_bundle, smooth_picture
from tiny_data import Deadly, TinyData

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.data.datasets import Street
from sparserefine_ros.dense.stage import DenseResult
from sparserefine_ros.errors import ConfigurationError, ModelOutputError, SparseRefineError
from sparserefine_ros.evaluation.bench import bench_pipeline
from sparserefine_ros.evaluation.boundary import near_edges
from sparserefine_ros.evaluation.calibration import Calibration
from sparserefine_ros.evaluation.evaluate import at_full_resolution, evaluate
from sparserefine_ros.evaluation.metrics import ConfusionMatrix
from sparserefine_ros.evaluation.scores import SelectorSetting, Variant
from sparserefine_ros.evaluation.selector import SelectionCurve
from sparserefine_ros.evaluation.subset import Subset
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import ALL_MAPS
from sparserefine_ros.run import describe

ONE_THREAD = PipelineOptions(threads=1)


class Unlabelled(TinyData):
    def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
        sample = super().__getitem__(index)
        return dataclasses.replace(sample, labels=np.full_like(sample.labels, 255))


def count_by_hand(bundle: Bundle) -> tuple[dict[Variant, float], float, float]:
    """Pixel accuracy of dense and refined result, selector recall and density."""
    pipeline = Pipeline(bundle)
    hits = {Variant.DENSE_LOW: 0, Variant.REFINED: 0}
    labelled = wrong = found = selected = pixels = 0
    data = TinyData()
    for index in range(len(data)):
        sample = data[index]
        result = pipeline(sample.image, ALL_MAPS)
        for row, column in np.ndindex(sample.labels.shape):
            truth = sample.labels[row, column]
            pixels += 1
            selected += bool(result.refined[row, column])
            if truth == 255:
                continue
            labelled += 1
            dense_right = result.dense_labels[row, column] == truth
            hits[Variant.DENSE_LOW] += bool(dense_right)
            hits[Variant.REFINED] += bool(result.labels[row, column] == truth)
            wrong += not dense_right
            found += bool(not dense_right and result.refined[row, column])
    accuracies = {name: count / labelled for name, count in hits.items()}
    return accuracies, found / wrong, selected / pixels


def test_scores_equal_a_count_by_hand(bundle: Bundle) -> None:
    evaluation = evaluate(bundle, TinyData(), ONE_THREAD, dense_full=at_full_resolution(bundle))
    accuracies, recall, density = count_by_hand(bundle)
    assert evaluation.setting.variants == tuple(Variant)
    for variant, accuracy in accuracies.items():
        assert evaluation.totals(variant).pixel_accuracy == pytest.approx(accuracy)
    assert evaluation.tally.selection.recall == pytest.approx(recall)
    assert evaluation.tally.selection.density == pytest.approx(density)
    assert accuracies[Variant.DENSE_LOW] != accuracies[Variant.REFINED]
    refined_shares = [frame.refined_share for frame in evaluation.frames]
    assert np.mean(refined_shares) == pytest.approx(density)


def test_each_variant_is_held_against_its_own_maps(tmp_path: Path) -> None:
    """With a threshold that nothing exceeds, a pipeline's maps are those of the dense result."""
    bundle = Bundle.open(make_tiny_bundle(tmp_path / "sharp", sharpness=4.0))
    evaluation = evaluate(bundle, TinyData(), ONE_THREAD, dense_full=at_full_resolution(bundle))
    unrefined = dataclasses.replace(ONE_THREAD, entropy_threshold=float(np.log(3)))
    pipelines = {
        Variant.DENSE_LOW: Pipeline(bundle, unrefined),
        Variant.DENSE_FULL: Pipeline(at_full_resolution(bundle), ONE_THREAD),
        Variant.REFINED: Pipeline(bundle, ONE_THREAD),
    }
    curve = SelectionCurve(3)
    for variant, pipeline in pipelines.items():
        calibration, confusion, boundary = Calibration(), ConfusionMatrix(3), ConfusionMatrix(3)
        for sample in map(TinyData().__getitem__, range(2)):
            result = pipeline(sample.image, ALL_MAPS)
            calibration.update(sample.labels, result.labels, result.confidence)
            confusion.update(sample.labels, result.labels)
            band = near_edges(sample.labels, distance_px=3)
            boundary.update(sample.labels[band], result.labels[band])
            if variant is Variant.DENSE_LOW:
                entropy = torch.from_numpy(result.entropy)
                curve.update(sample.labels, result.dense_labels, entropy)
        counted = evaluation.tally.variants[variant]
        assert np.array_equal(counted.calibration.counts, calibration.counts)
        assert np.array_equal(counted.confusion.counts, confusion.counts)
        assert np.array_equal(counted.boundary.counts, boundary.counts)
        assert boundary.counts.sum() < confusion.counts.sum()
    assert np.array_equal(evaluation.tally.curve.counts, curve.counts)
    errors = {evaluation.totals(variant).calibration_error for variant in Variant}
    assert len(errors) == 3


def test_scores_do_not_depend_on_the_number_of_processes(bundle: Bundle) -> None:
    found = [
        evaluate(
            bundle,
            TinyData(3),
            ONE_THREAD,
            dense_full=at_full_resolution(bundle),
            processes=processes,
        )
        for processes in (1, 2)
    ]
    for variant in Variant:
        one, two = (evaluation.classes(variant) for evaluation in found)
        assert [dataclasses.astuple(row)[:4] for row in one] == [
            dataclasses.astuple(row)[:4] for row in two
        ]
        one, two = (evaluation.tally.variants[variant].calibration for evaluation in found)
        assert np.array_equal(one.counts, two.counts)
    one, two = (evaluation.tally for evaluation in found)
    assert np.array_equal(one.curve.counts, two.curve.counts)
    assert np.array_equal(one.selection.counts, two.selection.counts)
    assert [f.name for f in found[1].frames] == ["tiny <0>", "tiny <1>", "tiny <2>"]
    assert found[0].setting == found[1].setting


def test_errors_of_another_process_arrive(bundle: Bundle) -> None:
    dense = bundle.spec.dense.model_copy(
        update={"output": bundle.spec.dense.output.model_copy(update={"stride": 1})}
    )
    broken = Bundle(bundle.folder, bundle.spec.model_copy(update={"dense": dense}), bundle.digest)
    with pytest.raises(ModelOutputError, match=r"correct output\.stride"):
        evaluate(broken, TinyData(), ONE_THREAD, processes=2)


def test_the_end_of_another_process_is_reported(bundle: Bundle) -> None:
    with pytest.raises(SparseRefineError, match=r"a process .* ended, .* fewer than 2 processes"):
        evaluate(bundle, Deadly(), ONE_THREAD, processes=2)


def test_another_bundle_gives_the_full_resolution_column(bundle: Bundle, tmp_path: Path) -> None:
    other = Bundle.open(make_tiny_bundle(tmp_path / "other", sharpness=4.0))
    evaluation = evaluate(bundle, TinyData(), ONE_THREAD, dense_full=other)
    alone = evaluate(other, TinyData(), ONE_THREAD)
    full = evaluation.tally.variants[Variant.DENSE_FULL].calibration
    # Its own input size is used, its refiner is not.
    expected = alone.tally.variants[Variant.DENSE_LOW].calibration
    assert np.array_equal(full.counts, expected.counts)
    assert other.digest in evaluation.setting.dense_full
    assert Variant.DENSE_FULL not in alone.setting.variants


def test_a_bundle_without_refiner_has_no_refined_column(bundle: Bundle) -> None:
    evaluation = evaluate(at_full_resolution(bundle), TinyData(), ONE_THREAD)
    assert evaluation.setting.variants == (Variant.DENSE_LOW,)
    assert evaluation.final is Variant.DENSE_LOW
    assert evaluation.refiner_macs() == evaluation.parameters.refiner == 0
    assert evaluation.tally.selection.density == 0.0
    assert evaluation.worst_frames(1)


def test_options_in_use_are_recorded(bundle: Bundle) -> None:
    options = dataclasses.replace(ONE_THREAD, entropy_threshold=0.5, max_refined_pixels=8)
    evaluation = evaluate(bundle, TinyData(), options, subset=Subset(limit=1))
    assert evaluation.setting.selector == SelectorSetting("entropy", 0.5, 8)
    assert (evaluation.setting.frames, len(evaluation.frames)) == (1, 1)
    assert evaluation.frames[0].refined_share <= 8 / (30 * 44)


def test_engines_are_recorded(bundle: Bundle) -> None:
    """Parts of an evaluation may have run on others."""
    options = PipelineOptions(threads=1, sparse_backend="pytorch")
    (machine,) = evaluate(bundle, TinyData(1), options).machines
    assert machine.endswith(
        "; dense: onnxruntime CPU, 1 threads (auto: device is cpu), sparse: pytorch, 1 threads"
    )


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_unlabelled_frames_have_no_scores(bundle: Bundle) -> None:
    evaluation = evaluate(bundle, Unlabelled(), ONE_THREAD)
    totals = evaluation.totals(Variant.REFINED)
    assert np.isnan([totals.mean_iou, totals.calibration_error, totals.boundary_mean_iou]).all()
    assert evaluation.frames[0].mean_iou[Variant.REFINED] is None
    assert evaluation.worst_frames(3) == []


class TestMistakes:
    def test_other_classes_are_refused(self, bundle: Bundle) -> None:
        with pytest.raises(ConfigurationError, match=r"expected data with the bundle's classes"):
            evaluate(bundle, Street("val", count=1, size=(32, 48)), ONE_THREAD)

    def test_a_full_resolution_bundle_with_other_classes_is_refused(self, bundle: Bundle) -> None:
        classes = bundle.spec.classes[::-1]
        spec = bundle.spec.model_copy(update={"classes": classes})
        other = Bundle(bundle.folder, spec, bundle.digest)
        with pytest.raises(
            ConfigurationError, match=r"a full-resolution bundle with .*'sky', 'car'"
        ):
            evaluate(bundle, TinyData(), ONE_THREAD, dense_full=other)

    def test_no_frames(self, bundle: Bundle) -> None:
        with pytest.raises(ConfigurationError, match="at least one frame in part 1/1 of 0"):
            evaluate(bundle, TinyData(0), ONE_THREAD)

    def test_no_process(self, bundle: Bundle) -> None:
        with pytest.raises(ConfigurationError, match="1 process or more, got 0"):
            evaluate(bundle, TinyData(), ONE_THREAD, processes=0)

    def test_full_resolution_needs_a_free_input_size(self, bundle: Bundle) -> None:
        full = Pipeline(at_full_resolution(bundle))
        assert full(smooth_picture(24, 32)).low_res_size == (24, 32)
        taken = bundle.spec.dense.input.model_copy(update={"size": (8, 8), "scale": None})
        dense = bundle.spec.dense.model_copy(update={"input": taken})
        fixed = Bundle(
            bundle.folder, bundle.spec.model_copy(update={"dense": dense}), bundle.digest
        )
        with pytest.raises(ConfigurationError, match="free input size"):
            at_full_resolution(fixed)


def test_frames_that_memory_did_not_suffice_for_are_not_scored(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(pipeline: Pipeline, image: object, found: DenseResult, *rest: object) -> object:
        return pipeline._nothing(found, 9), None, "no memory for 9 pixels"

    monkeypatch.setattr(Pipeline, "_refined", fail)
    with pytest.raises(SparseRefineError, match="no memory for 9 pixels"):
        evaluate(bundle, TinyData(2), ONE_THREAD)
    with pytest.raises(SparseRefineError, match="no memory for 9 pixels"):
        bench_pipeline(bundle, ONE_THREAD, (48, 64), frames=2, warmup=0)
    assert "(no memory for 9 pixels)" in describe(
        Pipeline(bundle, ONE_THREAD)(TinyData(1)[0].image)
    )
