# SPDX-License-Identifier: Apache-2.0
"""Refiner training behind a third party's ONNX model, from hand-written bundle to bundle."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import with_sections, write_pointwise_onnx
from numpy.typing import NDArray
from oracle import DenseUNet, grid_to_rows
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from sparserefine_ros.bundle import Bundle, seal_bundle
from sparserefine_ros.bundle_spec import EntropySelectorSpec, PointNetSpec, UNetSpec
from sparserefine_ros.data.datasets import Sample, iterate, open_dataset
from sparserefine_ros.data.street import CLASS_NAMES, StreetScene
from sparserefine_ros.errors import BundleError, ConfigurationError, SparseRefineError
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import ALL_MAPS
from sparserefine_ros.refiner import load_refiner
from sparserefine_ros.sampling import FeatureSampler, SelectedBlocks
from sparserefine_ros.selectors import SelectorNet
from sparserefine_ros.sparse.plan import build_plan
from sparserefine_ros.training import cache
from sparserefine_ros.training import refiner as module_under_test
from sparserefine_ros.training.losses import dice_loss
from sparserefine_ros.training.recipe import AugmentationRecipe, DataSource, RefinerRecipe, Schedule
from sparserefine_ros.training.refiner import RefinerTask, train_refiner
from sparserefine_ros.weights import save_weights

CLASSES = len(CLASS_NAMES)
THRESHOLD = 1.2
WEIGHT = np.random.default_rng(5).normal(0, 1.5, (CLASSES, 3)).astype(np.float32)
BIAS = np.random.default_rng(6).normal(0, 0.5, CLASSES).astype(np.float32)
MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four street scenes in CamVid's layout, as text form of a data set."""
    root = tmp_path_factory.mktemp("camvid")
    for split, seeds in (("train", (1, 2)), ("val", (3, 4))):
        for folder in ("images", "labels"):
            (root / split / folder).mkdir(parents=True)
        for seed in seeds:
            frame = StreetScene(seed).render(0.0, height=48, width=64)
            cv2.imwrite(str(root / split / "images" / f"{seed}.jpg"), frame.image[:, :, ::-1])
            cv2.imwrite(str(root / split / "labels" / f"{seed}.png"), frame.labels)
    return f"camvid:{root}"


@pytest.fixture(scope="module")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A foreign ONNX model made a bundle by a hand-written description alone."""
    return hand_written(tmp_path_factory.mktemp("third-party"), scale=0.5)


def hand_written(folder: Path, *, scale: float, names: tuple[str, ...] = CLASS_NAMES) -> Bundle:
    write_pointwise_onnx(folder / "foreign.onnx", WEIGHT, BIAS)
    fields = {
        "name": "foreign",
        "licence": "theirs",
        "classes": [{"name": name, "colour": [i, 0, 0]} for i, name in enumerate(names)],
        "dense": {"file": {"path": "foreign.onnx"}, "input": {"scale": scale}},
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    return seal_bundle(folder)


def make_recipe(data: str, **changes: Any) -> RefinerRecipe:
    fields: dict[str, Any] = {
        "name": "refined",
        "train": (DataSource(data=data, repeat=4),),
        "validate_on": data,
        "selector": EntropySelectorSpec(threshold_nats=THRESHOLD),
        "extractor": UNetSpec(widths=(8, 12), blocks=1),
        "schedule": make_schedule(),
        "augmentation": AugmentationRecipe(crop=(36, 50), scale=(0.8, 1.25)),
    }
    return RefinerRecipe(**{**fields, **changes})


def make_schedule(**changes: Any) -> Schedule:
    fields = {"epochs": 6, "batch_size": 2, "learning_rate": 0.01, "validate_every": 6}
    return Schedule(**{"workers": 0, "weight_decay": 0.0, **fields, **changes})


def dense_logits_at_full_size(image: NDArray[np.uint8]) -> Tensor:
    """float64 [C, H, W], from the foreign model's formula."""
    full = image.shape[:2]
    low = [max(1, round(side * 0.5)) for side in full]
    small = cv2.resize(image, (low[1], low[0]), interpolation=cv2.INTER_AREA)
    logits = np.einsum("ci,hwi->chw", WEIGHT.astype(np.float64), (small - MEAN) / STD)
    logits += BIAS[:, None, None]
    rows = [y * low[0] // full[0] for y in range(full[0])]
    columns = [x * low[1] // full[1] for x in range(full[1])]
    return torch.from_numpy(logits[:, rows][:, :, columns])


def naive_loss(
    task: RefinerTask, items: list[Sample], weights: Tensor, *, teacher_share: float = 0.0
) -> float:
    """Cross entropy of refined plus that of fused logits at the selected pixels, in float64.

    The teacher is the foreign model at full resolution.
    """
    dense = torch.stack([dense_logits_at_full_size(item.image) for item in items])
    p = dense.softmax(1)
    entropy = -(p * p.clamp_min(1e-5).log()).sum(1, keepdim=True)
    assert (entropy - THRESHOLD).abs().min() > 1e-6
    mask = entropy > THRESHOLD
    assert 0.05 < mask.double().mean() < 0.95
    rgb = torch.stack(
        [torch.from_numpy((item.image - MEAN) / STD).permute(2, 0, 1) for item in items]
    )
    state = {
        key: value.detach().double() for key, value in task.module.extractor.state_dict().items()
    }
    refined = DenseUNet(state, "image", training=True)(torch.cat([rgb, dense], 1), mask)
    truth = torch.from_numpy(np.stack([item.labels for item in items])).long()[mask[:, 0]]
    dense_rows, refined_rows = grid_to_rows(dense, mask), grid_to_rows(refined, mask)
    with torch.no_grad():
        fused_rows = task.module.ensembler.double()(dense_rows, refined_rows)
    task.module.ensembler.float()
    taught = torch.einsum("ci,bihw->bchw", torch.from_numpy(WEIGHT).double(), rgb)
    taught = grid_to_rows((taught + torch.from_numpy(BIAS)[:, None, None]).softmax(1), mask)
    total = 0.0
    for logits in (refined_rows, fused_rows):
        hard = F.cross_entropy(logits, truth, weights.double(), ignore_index=255).item()
        soft = -(taught * logits.log_softmax(1)).sum(1).mean().item()
        total += (1.0 - teacher_share) * hard + teacher_share * soft
    return total


class TestLoss:
    @pytest.mark.parametrize("balance", [0.0, 0.5])
    @pytest.mark.parametrize("ensembler", ["gated", "entropy", "direct"])
    def test_equals_the_definition(
        self, camvid: str, third_party: Bundle, ensembler: str, balance: float
    ) -> None:
        recipe = make_recipe(
            camvid, ensembler=ensembler, class_balance=balance, inputs=("rgb", "logits")
        )
        task = RefinerTask(recipe, third_party)
        task.module.train()
        items = [task.crops[i] for i in range(3)]
        items[1].labels[:20] = 255
        weights = task.crops.class_weights(CLASSES, balance)
        expected = naive_loss(task, items, weights)
        assert task.loss(task.collate(items)).item() == pytest.approx(expected, rel=1e-4)

    def test_a_teacher_takes_its_share(
        self, camvid: str, third_party: Bundle, tmp_path: Path
    ) -> None:
        hand_written(tmp_path, scale=1.0)
        recipe = make_recipe(
            camvid, inputs=("rgb", "logits"), teacher=str(tmp_path), teacher_share=0.3
        )
        task = RefinerTask(recipe, third_party)
        task.module.train()
        items = [task.crops[i] for i in range(2)]
        items[1].labels[:20] = 255
        weights = task.crops.class_weights(CLASSES, 0.0)
        expected = naive_loss(task, items, weights, teacher_share=0.3)
        assert task.loss(items).item() == pytest.approx(expected, rel=1e-4)

    def test_the_dice_loss_is_added(self, camvid: str, third_party: Bundle) -> None:
        plain, with_dice = (
            RefinerTask(make_recipe(camvid, ensembler="direct", dice=dice), third_party)
            for dice in (0.0, 0.7)
        )
        items = [plain.crops[i] for i in range(2)]
        items[1].labels[:20] = 255
        seen: list[float] = []

        def remember(logits: Tensor, labels: Tensor) -> Tensor:
            seen.append(dice_loss(logits, labels).item())
            return dice_loss(logits, labels)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module_under_test, "dice_loss", remember)
            expected = plain.loss(items).item()
            assert seen == []
            loss = with_dice.loss(items)
        # Refined and fused logits are the same behind the direct ensembler.
        assert len(seen) == 2
        assert 0.1 < seen[0] == seen[1] < 1.0
        assert loss.item() == pytest.approx(expected + 0.7 * sum(seen), rel=1e-5)
        loss.backward()

    def test_validation_beyond_memory_scores_the_same(
        self, camvid: str, third_party: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = RefinerTask(make_recipe(camvid), third_party)
        monkeypatch.setattr(cache, "MEMORY_LIMIT_BYTES", 0)
        part = RefinerTask(make_recipe(camvid), third_party)
        assert part.score(part.module) == whole.score(whole.module)

    def test_a_teacher_of_other_classes_is_refused(
        self, camvid: str, third_party: Bundle, tmp_path: Path
    ) -> None:
        hand_written(tmp_path, scale=1.0, names=CLASS_NAMES[::-1])
        with pytest.raises(ConfigurationError, match="expected a teacher with the bundle's"):
            RefinerTask(make_recipe(camvid, teacher=str(tmp_path)), third_party)

    def test_gradients_reach_every_weight(self, camvid: str, third_party: Bundle) -> None:
        task = RefinerTask(make_recipe(camvid), third_party)
        task.module.train()
        task.loss([task.crops[0], task.crops[1]]).backward()
        idle = [
            key
            for key, parameter in task.module.named_parameters()
            if parameter.grad is None or not parameter.grad.abs().max() > 0
        ]
        assert idle == []

    def test_nothing_selected(self, camvid: str, third_party: Bundle) -> None:
        recipe = make_recipe(
            camvid, selector=EntropySelectorSpec(threshold_nats=math.log(CLASSES) - 1e-6)
        )
        task = RefinerTask(recipe, third_party)
        task.module.train()
        loss = task.loss([task.crops[0], task.crops[1]])
        assert loss.item() == 0.0
        loss.backward()
        # Data parallelism waits for the gradient of every weight.
        assert all(parameter.grad is not None for parameter in task.module.parameters())
        assert 0.0 <= task.score(task.module) <= 1.0

    def test_the_pixel_budget_of_a_crop(
        self, camvid: str, third_party: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sites: list[Tensor] = []
        plain = module_under_test.build_plan

        def spy(pixels: Tensor, *args: Any, **options: Any) -> Any:
            sites.append(pixels)
            return plain(pixels, *args, **options)

        monkeypatch.setattr(module_under_test, "build_plan", spy)
        task = RefinerTask(make_recipe(camvid, max_train_share=0.1), third_party)
        task.loss([task.crops[0], task.crops[1]])
        crop = 36 * 50
        for i in range(2):
            count = int(((sites[0] >= i * crop) & (sites[0] < (i + 1) * crop)).sum())
            assert 0.05 * crop < count <= 0.1 * crop

    def test_bfloat16_is_close(self, camvid: str, third_party: Bundle) -> None:
        task = RefinerTask(make_recipe(camvid), third_party)
        items = [task.crops[0], task.crops[1]]
        plain = task.loss(items)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = task.loss(items)
        mixed.backward()
        # Eight bits of mantissa through some ten layers.
        assert mixed.item() == pytest.approx(plain.item(), rel=0.05)

    def test_what_is_frozen_stays_in_float32(self, camvid: str, tmp_path: Path) -> None:
        """A learnt selector chooses the same pixels as at inference."""
        foreign = hand_written(tmp_path, scale=0.5)
        save_weights(SelectorNet(CLASSES), tmp_path / "selector.safetensors")
        learnt = {"kind": "learnable", "file": {"path": "selector.safetensors"}, "threshold": 0.5}
        bundle = with_sections(foreign.folder, selector=learnt)
        task = RefinerTask(make_recipe(camvid, selector=None), bundle)
        items = [task.crops[0], task.crops[1]]
        taken = [task._select(item, task._selector).selection.pixels for item in items]
        seen: list[Tensor] = []
        task._selector.score = remembering(task._selector.score, seen)  # type: ignore[method-assign]
        with torch.autocast("cpu", torch.bfloat16):
            task.loss(items)
        assert [score.dtype for score in seen] == 2 * [torch.float32]
        assert sum(pixels.numel() for pixels in taken) > 0

    @pytest.mark.parametrize("told", [False, True])
    def test_crops_that_a_model_of_fixed_size_sees_otherwise_than_pictures(
        self,
        camvid: str,
        tmp_path: Path,
        told: bool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        hand_written(tmp_path, scale=0.5)
        fields = yaml.safe_load((tmp_path / "bundle.yaml").read_text())
        height, width = open_dataset(camvid, "val")[0].labels.shape
        fields["dense"]["input"] = {"size": [height // 2, width // 2]}
        (tmp_path / "bundle.yaml").write_text(yaml.safe_dump(fields))
        crop = (36, 50) if told else (height, width)
        recipe = make_recipe(camvid, augmentation=AugmentationRecipe(crop=crop))
        RefinerTask(recipe, seal_bundle(tmp_path))
        assert (f"choose crop: [{height}, {width}]" in caplog.text) == told

    @pytest.mark.parametrize("seed", [-1, 2**32])
    def test_a_seed_that_is_none(self, camvid: str, seed: int) -> None:
        with pytest.raises(ValidationError, match="seed"):
            make_recipe(camvid, seed=seed)


def remembering(function: Callable[..., Tensor], seen: list[Tensor]) -> Callable[..., Tensor]:
    """The function, whose results are kept too."""

    def call(*args: Any) -> Tensor:
        seen.append(function(*args))
        return seen[-1]

    return call


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
