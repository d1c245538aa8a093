# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.bundle_spec import ClassSpec
from sparserefine_ros.data.datasets import iterate, open_dataset
from sparserefine_ros.data.street import CLASS_NAMES
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import ALL_MAPS
from sparserefine_ros.training import cache
from sparserefine_ros.training.crops import AugmentedCrops
from sparserefine_ros.training.dense import DenseTask, count_labels, train_dense
from sparserefine_ros.training.recipe import (
    AugmentationRecipe,
    DataSource,
    DenseRecipe,
    ResidualEncoderRecipe,
    Schedule,
)

DATA = "street:3:3:64x48"


def make_recipe(**changes: Any) -> DenseRecipe:
    fields: dict[str, Any] = {
        "name": "tiny dense",
        "licence": "none",
        "train": (DataSource(data=DATA, repeat=2),),
        "validate_on": DATA,
        "encoder": ResidualEncoderRecipe(kind="residual", stem=4, widths=(6, 8), blocks=1),
        "ladder": 6,
        "features": 5,
        "schedule": Schedule(
            epochs=2, batch_size=3, learning_rate=0.01, validate_every=1, workers=0
        ),
        "augmentation": AugmentationRecipe(crop=(30, 46)),
        "classes": tuple(ClassSpec(name=name, colour=(0, 0, 0)) for name in CLASS_NAMES),
    }
    return DenseRecipe(**{**fields, **changes})


class TestCountLabels:
    @pytest.mark.parametrize(
        ("full", "low"), [((8, 12), (4, 6)), ((9, 13), (4, 6)), ((3, 5), (4, 6)), ((7, 7), (1, 1))]
    )
    def test_equals_counting_pixel_by_pixel(
        self, full: tuple[int, int], low: tuple[int, int]
    ) -> None:
        labels = np.random.default_rng(1).integers(0, 6, full).astype(np.uint8)
        labels[labels == 5] = 255
        expected = np.zeros((5, *low))
        for y in range(full[0]):
            for x in range(full[1]):
                if labels[y, x] != 255:
                    expected[labels[y, x], y * low[0] // full[0], x * low[1] // full[1]] += 1
        counts = count_labels(labels, low, 5)
        assert counts.dtype == np.float32
        assert np.array_equal(counts, expected)


class TestClassWeights:
    @pytest.mark.parametrize("balance", [0.0, 0.2, 1.0])
    def test_frequency_to_a_power_with_mean_one(self, balance: float) -> None:
        sources = (DataSource(data=DATA, repeat=2), DataSource(data="street:9:2:60x50"))
        crops = AugmentedCrops(sources, make_recipe().augmentation, seed=1)
        weights = crops.class_weights(len(CLASS_NAMES), balance)
        counts = np.zeros(len(CLASS_NAMES), int)
        for source in sources:
            for sample in iterate(open_dataset(source.data, "train")):
                for label in range(len(CLASS_NAMES)):
                    counts[label] += source.repeat * int((sample.labels == label).sum())
        # A class that never occurs counts as one pixel.
        shares = np.maximum(counts, 1) / np.maximum(counts, 1).sum()
        expected = shares**-balance / (shares ** (1 - balance)).sum()
        np.testing.assert_allclose(weights, expected, rtol=1e-5)
        assert weights.dtype == torch.float32
        assert len(crops) == 8


class TestCrops:
    def test_a_pure_function_of_seed_epoch_and_index(self) -> None:
        recipe = make_recipe()

        def crop(seed: int, epoch: int, index: int) -> bytes:
            crops = AugmentedCrops(recipe.train, recipe.augmentation, seed=seed)
            crops.set_epoch(epoch)
            return crops[index].image.tobytes()

        first = crop(1, 2, 0)
        assert first == crop(1, 2, 0)
        # Item 3 is the same picture as item 0, by `repeat`, in another crop.
        assert len({first, crop(1, 3, 0), crop(2, 2, 0), crop(1, 2, 1), crop(1, 2, 3)}) == 5

    def test_the_order_of_sources_and_repeats(self) -> None:
        sources = (
            DataSource(data="street:3:2:64x48", repeat=2),
            DataSource(data="street:9:3:64x48"),
        )
        crops = AugmentedCrops(sources, make_recipe().augmentation, seed=1)
        numbers = [3, 4, 3, 4, 9, 10, 11]
        assert [crops[i].name for i in range(len(crops))] == [f"street_{i}" for i in numbers]

    @pytest.mark.parametrize("pictures_in_memory", [0, 2])
    def test_memory_changes_nothing(
        self, monkeypatch: pytest.MonkeyPatch, pictures_in_memory: int
    ) -> None:
        recipe = make_recipe()
        whole = AugmentedCrops(recipe.train, recipe.augmentation, seed=1)
        monkeypatch.setattr(cache, "MEMORY_LIMIT_BYTES", pictures_in_memory * 64 * 48 * 4)
        part = AugmentedCrops(recipe.train, recipe.augmentation, seed=1)
        assert [part[i].image.tobytes() for i in range(6)] == [
            whole[i].image.tobytes() for i in range(6)
        ]
        classes = len(CLASS_NAMES)
        assert torch.equal(part.class_weights(classes, 0.5), whole.class_weights(classes, 0.5))


class TestLoss:
    @pytest.mark.parametrize("balance", [0.0, 0.5])
    def test_equals_cross_entropy_at_full_resolution(self, balance: float) -> None:
        task = DenseTask(make_recipe(class_balance=balance))
        items = [task.crops[i] for i in range(3)]
        items[1].labels[:, 5:30] = 255
        batch = task.collate(items)
        assert batch[0].shape == (3, 3, 16, 24)
        task.module.eval()
        with torch.no_grad():
            loss = task.loss(batch)
            logits = F.interpolate(task.module(batch[0]), size=(16, 24), mode="bilinear").double()
        rows = [y * 16 // 30 for y in range(30)]
        columns = [x * 24 // 46 for x in range(46)]
        expanded = logits[:, :, rows][:, :, :, columns]
        truth = torch.from_numpy(np.stack([item.labels for item in items])).long()
        weights = task.crops.class_weights(len(CLASS_NAMES), balance).double()
        expected = F.nll_loss(
            F.log_softmax(expanded, 1), truth, weights, ignore_index=255, reduction="mean"
        )
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_unlabelled_crops_cost_nothing(self) -> None:
        task = DenseTask(make_recipe())
        items = [task.crops[i] for i in range(2)]
        for item in items:
            item.labels[:] = 255
        loss = task.loss(task.collate(items))
        assert loss.item() == 0.0
        loss.backward()


def naive_miou(pairs: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> float:
    truth = np.concatenate([a.ravel() for a, _ in pairs])
    predicted = np.concatenate([b.ravel() for _, b in pairs])[truth != 255]
    truth = truth[truth != 255]
    present = np.unique(truth)
    ious = [
        ((truth == c) & (predicted == c)).sum() / ((truth == c) | (predicted == c)).sum()
        for c in present
    ]
    return float(np.mean(ious))


class TestTrainDense:
    def test_leaves_a_bundle_that_scores_as_recorded(self, tmp_path: Path) -> None:
        recipe = make_recipe()
        bundle = train_dense(recipe, tmp_path / "run", resume=False)
        assert bundle == Bundle.open(tmp_path / "run" / "bundle")
        assert (bundle.name, bundle.class_names) == ("tiny dense", CLASS_NAMES)
        assert bundle.spec.refiner is None
        pipeline = Pipeline(bundle, PipelineOptions(threads=1))
        pairs = []
        for sample in iterate(open_dataset(DATA, "val")):
            prediction = pipeline(sample.image, ALL_MAPS)
            assert prediction.labels is not None
            assert prediction.refined_pixels == 0
            pairs.append((sample.labels, prediction.labels))
        record = bundle.spec.training
        assert record["dense_epochs"] == 2
        # ONNX Runtime rounds otherwise than torch: a pixel here and there may tip.
        assert record["dense_val_miou"] == pytest.approx(naive_miou(pairs), abs=5e-3)

    def test_resume_equals_an_uninterrupted_run(self, tmp_path: Path) -> None:
        whole = train_dense(make_recipe(), tmp_path / "whole", resume=False)
        half = make_recipe()
        broken = DenseTask.loss
        calls = 0

        def stop(self: DenseTask, batch: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return broken(self, batch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DenseTask, "loss", stop)
            with pytest.raises(KeyboardInterrupt):
                train_dense(half, tmp_path / "half", resume=False)
        resumed = train_dense(half, tmp_path / "half", resume=True)
        assert resumed.spec.training == whole.spec.training
        for name in ("last.pt", "best.pt"):
            a, b = (
                torch.load(tmp_path / run / name, weights_only=True) for run in ("whole", "half")
            )
            assert a["module"].keys() == b["module"].keys()
            assert all(torch.equal(a["module"][key], b["module"][key]) for key in a["module"])

    def test_classes_left_out_are_those_of_the_data(self, tmp_path: Path) -> None:
        schedule = Schedule(epochs=1, batch_size=3, validate_every=1, workers=0)
        recipe = make_recipe(classes=None, schedule=schedule)
        bundle = train_dense(recipe, tmp_path / "run", resume=False)
        assert bundle.class_names == CLASS_NAMES
        colours = [entry.colour for entry in bundle.spec.classes]
        assert colours == list(open_dataset(DATA, "train").colours)
        assert bundle.spec.dense.features is not None
        assert bundle.spec.dense.features.channels == 5

    def test_crops_of_which_the_deepest_level_sees_one_pixel(self) -> None:
        crops = AugmentationRecipe(crop=(14, 16))
        with pytest.raises(ConfigurationError, match=r"at stride 8, got crop: .* 8 x 8 at"):
            DenseTask(make_recipe(augmentation=crops))
        DenseTask(make_recipe(augmentation=AugmentationRecipe(crop=(14, 24))))

    @pytest.mark.parametrize(
        "names", [CLASS_NAMES[:5], CLASS_NAMES[::-1]], ids=["too-few", "another-order"]
    )
    def test_classes_other_than_the_data_s(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        classes = tuple(ClassSpec(name=name, colour=(0, 0, 0)) for name in names)
        with pytest.raises(ConfigurationError, match="classes"):
            train_dense(make_recipe(classes=classes), tmp_path / "run", resume=False)
