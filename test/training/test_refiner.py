# SPDX-License-Identifier: Apache-2.0
"""Refiner training behind a third party's ONNX model, from hand-written bundle to bundle."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from training.refining import (
    CLASSES,
    THRESHOLD,
    hand_written,
    make_recipe,
    make_schedule,
    write_camvid,
)

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.bundle_spec import EntropySelectorSpec, PointNetSpec, UNetSpec
from sparserefine_ros.data.datasets import Sample, iterate, open_dataset
from sparserefine_ros.data.street import StreetScene
from sparserefine_ros.errors import BundleError, ConfigurationError, SparseRefineError
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import ALL_MAPS
from sparserefine_ros.refiner import load_refiner
from sparserefine_ros.sampling import FeatureSampler, SelectedBlocks
from sparserefine_ros.sparse.plan import build_plan
from sparserefine_ros.training import refiner as module_under_test
from sparserefine_ros.training.refiner import RefinerTask, train_refiner


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture(scope="module")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A foreign ONNX model made a bundle by a hand-written description alone."""
    return hand_written(tmp_path_factory.mktemp("third-party"), scale=0.5)


def naive_miou(bundle: Bundle, data: str) -> float:
    """Mean IoU over the classes present, through the pipeline."""
    pipeline = Pipeline(bundle, PipelineOptions(threads=1))
    truths, labels = [], []
    for sample in iterate(open_dataset(data, "val")):
        prediction = pipeline(sample.image, ALL_MAPS)
        assert prediction.labels is not None
        truths.append(sample.labels[sample.labels != 255])
        labels.append(prediction.labels[sample.labels != 255])
    t, p = np.concatenate(truths), np.concatenate(labels)
    ious = [((t == c) & (p == c)).sum() / ((t == c) | (p == c)).sum() for c in np.unique(t)]
    return float(np.mean(ious))


class TestTrainRefiner:
    def test_from_a_third_party_s_model_to_a_better_bundle(
        self, camvid: str, third_party: Bundle, tmp_path: Path
    ) -> None:
        recipe = make_recipe(camvid)
        bundle = train_refiner(recipe, third_party, tmp_path / "run", resume=False)
        assert bundle == Bundle.open(tmp_path / "run" / "bundle")
        with (tmp_path / "run" / "log.csv").open(newline="") as stream:
            losses = [float(row["loss"]) for row in csv.DictReader(stream)]
        assert len(losses) == 6
        assert losses[-1] < 0.8 * losses[0]

        assert (bundle.name, bundle.spec.licence) == ("refined", "theirs")
        assert bundle.spec.selector is not None
        assert bundle.spec.selector.threshold_nats == THRESHOLD
        assert bundle.spec.dense == third_party.spec.dense
        assert (bundle.folder / "foreign.onnx").read_bytes() == (
            third_party.folder / "foreign.onnx"
        ).read_bytes()
        refined = naive_miou(bundle, camvid)
        assert refined > naive_miou(third_party, camvid)
        # Validation runs the same stages on the same weights.
        assert bundle.spec.training["refined_val_miou"] == pytest.approx(refined, abs=2e-3)
        alone = bundle.spec.training["refiner_dense_val_miou"]
        assert alone == pytest.approx(naive_miou(third_party, camvid), abs=2e-3)

    def test_a_pointnet(self, third_party: Bundle, tmp_path: Path) -> None:
        recipe = make_recipe(
            "street:5:2:64x48",
            schedule=make_schedule(epochs=2),
            extractor=PointNetSpec(kind="pointnet", widths=(8, 12)),
        )
        bundle = train_refiner(recipe, third_party, tmp_path / "run", resume=False)
        image = StreetScene(9).render(1.0, height=50, width=70).image
        labels = Pipeline(bundle, PipelineOptions(threads=1))(image).labels
        task = RefinerTask(recipe, bundle)
        task.module = load_refiner(bundle)
        assert labels is not None
        # The same pixels through the trainable modules.
        frame = task._select(Sample("x", image, np.zeros((50, 70), np.uint8)), task._selector)
        blocks = SelectedBlocks(frame.selection)
        dense_logits = blocks.sample(frame.dense.logits)
        plan = build_plan(frame.selection.pixels, (1, 50, 70), 1)
        features = FeatureSampler(bundle.spec.refiner)(image, frame.dense, blocks)
        with torch.no_grad():
            refined = task.module.extractor(features, plan)
            fused = task.module.ensembler(dense_logits, refined).argmax(1)
        assert np.array_equal(labels.reshape(-1)[frame.selection.pixels.numpy()], fused.numpy())

    def test_calibration_keeps_no_more_than_it_needs(
        self, camvid: str, third_party: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module_under_test, "_MOST_OF_ALL", 200)
        task = RefinerTask(make_recipe(camvid), third_party)
        frames = list(task._validation)
        most = 200 // len(frames)
        for frame in frames:
            logits, truth = task._evidence(frame)
            assert len(logits) == len(truth)
            assert 0 < len(logits) <= most < frame.selection.count
            assert logits.untyped_storage().nbytes() == logits.numel() * 4
            assert truth.untyped_storage().nbytes() == truth.numel() * 8

    def test_calibration_may_change_when_a_run_goes_on(
        self, third_party: Bundle, tmp_path: Path
    ) -> None:
        recipe = make_recipe("street:5:2:64x48", schedule=make_schedule(epochs=1))
        bundle = train_refiner(recipe, third_party, tmp_path, resume=False)
        assert "refiner_temperature" in bundle.spec.training
        plain = recipe.model_copy(update={"calibrate": False})
        bundle = train_refiner(plain, third_party, tmp_path, resume=True)
        assert "refiner_temperature" not in bundle.spec.training

    @pytest.mark.parametrize("ensembler", ["gated", "direct"])
    def test_calibration_changes_how_sure_it_is_and_no_label(
        self, third_party: Bundle, tmp_path: Path, ensembler: str
    ) -> None:
        recipe = make_recipe(
            "street:5:2:64x48", schedule=make_schedule(epochs=2), ensembler=ensembler
        )
        image = StreetScene(9).render(1.0, height=50, width=70).image
        found = []
        for calibrate in (False, True):
            chosen = recipe.model_copy(update={"calibrate": calibrate})
            bundle = train_refiner(chosen, third_party, tmp_path / str(calibrate), resume=False)
            pipeline = Pipeline(bundle, PipelineOptions(threads=1, sparse_backend="pytorch"))
            found.append((bundle, pipeline(image, ALL_MAPS)))
        (plain, before), (calibrated, after) = found
        assert np.array_equal(before.labels, after.labels)
        assert "refiner_temperature" not in plain.spec.training
        if ensembler == "direct":
            assert "refiner_temperature" not in calibrated.spec.training
            assert np.array_equal(before.entropy, after.entropy)
            return
        temperature = float(calibrated.spec.training["refiner_temperature"])
        assert temperature != pytest.approx(1.0, abs=0.001)
        one, other = (load_refiner(each).ensembler.mix[2] for each in (plain, calibrated))
        torch.testing.assert_close(other.weight * temperature, one.weight, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(other.bias * temperature, one.bias, rtol=1e-3, atol=1e-5)
        assert not np.array_equal(before.entropy, after.entropy)

    def test_from_a_refiner_for_another_dense_model(
        self, third_party: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        brief = make_schedule(epochs=1, validate_every=1)
        recipe = make_recipe("street:5:2:64x48", schedule=brief)
        source = train_refiner(recipe, third_party, tmp_path / "source", resume=False)
        monkeypatch.setenv("RUNS", str(tmp_path))
        (tmp_path / "other").mkdir()
        other = hand_written(tmp_path / "other", scale=0.25)
        second = recipe.model_copy(update={"start_from": "$RUNS/source/bundle"})
        begun = RefinerTask(second, other).module.state_dict()
        learnt = load_refiner(source).state_dict()
        assert all(torch.equal(begun[key], learnt[key]) for key in learnt)
        bundle = train_refiner(second, other, tmp_path / "run", resume=False)
        assert bundle.spec.training["refiner_start"] == "refined"

    def test_from_procedural_scenes_without_logits(
        self, third_party: Bundle, tmp_path: Path
    ) -> None:
        recipe = make_recipe(
            "street:5:2:64x48",
            schedule=make_schedule(epochs=2, average_decay=0.5),
            ensembler="entropy",
            inputs=("logits",),
            extractor=UNetSpec(widths=(8, 12), blocks=1, bounds="data"),
        )
        bundle = train_refiner(recipe, third_party, tmp_path / "run", resume=False)
        image = StreetScene(9).render(1.0, height=50, width=70).image
        prediction = Pipeline(bundle, PipelineOptions(threads=1))(image, ALL_MAPS)
        assert prediction.labels is not None
        assert prediction.entropy is not None
        assert prediction.labels.max() < CLASSES
        assert prediction.refined_pixels > 0
        assert np.isfinite(prediction.entropy).all()

    def test_other_classes(self, camvid: str, tiny_bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"model's classes \['road', 'car', 'sky'\]"):
            train_refiner(
                make_recipe(camvid), Bundle.open(tiny_bundle), tmp_path / "run", resume=False
            )
        assert not (tmp_path / "run").exists()

    def test_an_impossible_threshold_is_found_before_training(
        self, camvid: str, third_party: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def must_not_train(*args: object, **options: object) -> float:
            pytest.fail("training started")

        monkeypatch.setattr(module_under_test, "fit", must_not_train)
        recipe = make_recipe(camvid, selector=EntropySelectorSpec(threshold_nats=3.0))
        with pytest.raises((ConfigurationError, BundleError), match=r"log\(classes\)"):
            train_refiner(recipe, third_party, tmp_path / "run", resume=False)

    def test_missing_data(self, third_party: Bundle, tmp_path: Path) -> None:
        recipe = make_recipe(f"camvid:{tmp_path / 'nowhere'}")
        with pytest.raises(SparseRefineError, match="expected CamVid pictures"):
            train_refiner(recipe, third_party, tmp_path / "run", resume=False)
