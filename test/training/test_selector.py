# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_pointwise_onnx
from pydantic import ValidationError
from torch.nn import functional as F

from sparserefine_ros.bundle import Bundle, create_bundle
from sparserefine_ros.bundle_spec import (
    BundleSpec,
    ClassSpec,
    DenseInput,
    DenseSpec,
    FileSpec,
    LearnableSelectorSpec,
)
from sparserefine_ros.data.datasets import iterate, open_dataset
from sparserefine_ros.data.street import CLASS_NAMES
from sparserefine_ros.dense.segmenter import open_segmenter
from sparserefine_ros.errors import ConfigurationError, SparseRefineError
from sparserefine_ros.image import resize_image
from sparserefine_ros.selection import expand_map
from sparserefine_ros.selectors import open_selector
from sparserefine_ros.training import selector as module_under_test
from sparserefine_ros.training.recipe import (
    AugmentationRecipe,
    DataSource,
    Schedule,
    SelectorRecipe,
)
from sparserefine_ros.training.selector import SelectorTask, train_selector
from sparserefine_ros.uncertainty import measure_uncertainty

DATA = "street:3:3:66x50"
CLASSES = len(CLASS_NAMES)


@pytest.fixture
def dense(tmp_path: Path) -> Bundle:
    """A dense model that tells classes by colour, badly: mostly, it says road or building."""
    weight = np.random.default_rng(5).normal(0, 0.5, (CLASSES, 3)).astype(np.float32)
    bias = np.zeros(CLASSES, np.float32)
    bias[CLASS_NAMES.index("road")], bias[CLASS_NAMES.index("building")] = 2.0, 2.0
    write_pointwise_onnx(tmp_path / "dense.onnx", weight, bias)
    spec = BundleSpec(
        name="dense",
        licence="none",
        classes=tuple(ClassSpec(name=name, colour=(0, 0, 0)) for name in CLASS_NAMES),
        dense=DenseSpec(file=FileSpec(path="dense.onnx"), input=DenseInput(scale=0.5)),
    )
    return create_bundle(tmp_path / "dense", spec, {"dense.onnx": tmp_path / "dense.onnx"})


def make_recipe(**changes: object) -> SelectorRecipe:
    fields: dict[str, object] = {
        "name": "selecting",
        "train": (DataSource(data=DATA, repeat=2),),
        "validate_on": DATA,
        "density": 0.2,
        "max_pixels": 900,
        "schedule": Schedule(
            epochs=6, batch_size=2, learning_rate=0.02, validate_every=3, workers=0
        ),
        "augmentation": AugmentationRecipe(crop=(31, 46)),
    }
    return SelectorRecipe.model_validate({**fields, **changes})


def test_loss_equals_the_definition_at_full_resolution(dense: Bundle) -> None:
    task = SelectorTask(make_recipe(), dense)
    items = [task.crops[i] for i in range(2)]
    items[1].labels[:9] = 255
    segment = open_segmenter(dense, backend="auto", device="cpu", threads=1)
    total, labelled = 0.0, 0
    for item in items:
        low_res_image = resize_image(item.image, (16, 23))
        logits = segment([low_res_image])[0].logits
        spec = dense.spec.dense.input
        image = torch.from_numpy((low_res_image - np.array(spec.mean)) / np.array(spec.std))
        entropy = measure_uncertainty(logits).entropy
        with torch.no_grad():
            found = task.module(image.float().permute(2, 0, 1)[None], logits[None], entropy[None])[
                0
            ]
        truth = torch.from_numpy(item.labels)
        wrong = torch.from_numpy(expand_map(logits.argmax(0).numpy(), (31, 46))) != truth
        each = F.binary_cross_entropy_with_logits(
            torch.from_numpy(expand_map(found.numpy(), (31, 46))), wrong.float(), reduction="none"
        )
        total += each[truth != 255].sum().item()
        labelled += int((truth != 255).sum())
    assert task.loss(items).item() == pytest.approx(total / labelled, rel=1e-4)


def test_leaves_a_bundle_that_finds_more_than_chance(dense: Bundle, tmp_path: Path) -> None:
    bundle = train_selector(make_recipe(), dense, tmp_path / "run", resume=False)
    spec = bundle.spec.selector
    assert isinstance(spec, LearnableSelectorSpec)
    assert spec.max_pixels == 900
    selector = open_selector(bundle)
    selector.max_pixels = 0
    segment = open_segmenter(bundle, backend="auto", device="cpu", threads=1)
    selected = found = wrong_pixels = pixels = 0
    for sample in iterate(open_dataset(DATA, "val")):
        size = bundle.spec.dense.input.low_res_size((50, 66))
        low_res_image = resize_image(sample.image, size)
        output = segment([low_res_image])[0]
        selection = selector(low_res_image, output, measure_uncertainty(output.logits), (50, 66))
        labels = expand_map(output.logits.argmax(0).numpy(), (50, 66))
        wrong = (labels != sample.labels) & (sample.labels != 255)
        selected += selection.count
        found += int(wrong.reshape(-1)[selection.pixels.numpy()].sum())
        wrong_pixels += int(wrong.sum())
        pixels += wrong.size
    assert selected / pixels == pytest.approx(0.2, abs=0.01)
    assert found / wrong_pixels == pytest.approx(
        float(bundle.spec.training["selector_val_recall"]), abs=1e-3
    )
    # Three quarters of all pixels are wrong, so that chance would find 0.2 and the best 0.26.
    assert found / wrong_pixels > 1.1 * selected / pixels


def test_other_classes(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="model's classes"):
        train_selector(make_recipe(), Bundle.open(tiny_bundle), tmp_path / "run", resume=False)


def test_without_any_label_to_validate_on(
    dense: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = module_under_test.count_labels

    def unlabelled(labels: np.ndarray, *rest: object) -> np.ndarray:
        of_a_crop = labels.shape == make_recipe().augmentation.crop
        left = labels if of_a_crop and keep_crops else np.full_like(labels, 255)
        return plain(left, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module_under_test, "count_labels", unlabelled)
    keep_crops = True
    with pytest.raises(SparseRefineError, match="expected validation data with labelled pixels"):
        train_selector(make_recipe(), dense, tmp_path / "run", resume=False)
    keep_crops = False
    with pytest.raises(SparseRefineError, match="expected training data with labelled pixels"):
        train_selector(make_recipe(), dense, tmp_path / "other", resume=False)


def test_classes_are_not_balanced() -> None:
    with pytest.raises(ValidationError, match="tells right from wrong, not classes"):
        make_recipe(class_balance=0.5)
