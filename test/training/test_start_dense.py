# SPDX-License-Identifier: Apache-2.0
"""What a dense network takes over from one that is trained already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import random_statistics, write_pointwise_onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from sparserefine_ros.bundle import Bundle, seal_bundle
from sparserefine_ros.bundle_spec import ClassSpec
from sparserefine_ros.data.street import CLASS_NAMES
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.training.dense import DenseTask, build_network, train_dense
from sparserefine_ros.training.recipe import (
    AugmentationRecipe,
    DataSource,
    DenseRecipe,
    EfficientNetLiteRecipe,
    ResidualEncoderRecipe,
    Schedule,
)
from sparserefine_ros.training.start_dense import start_dense_from
from sparserefine_ros.zoo.export import export_onnx
from sparserefine_ros.zoo.half_weights import halve_weights
from sparserefine_ros.zoo.ladder import LadderNet

DATA = "street:3:3:64x48"
RESIDUAL = ResidualEncoderRecipe(kind="residual", stem=4, widths=(6, 8), blocks=2)
EFFICIENT = EfficientNetLiteRecipe(kind="efficientnet", pretrained=False)


def make_recipe(**changes: Any) -> DenseRecipe:
    fields: dict[str, Any] = {
        "name": "tiny dense",
        "licence": "none",
        "train": (DataSource(data=DATA),),
        "validate_on": DATA,
        "encoder": RESIDUAL,
        "ladder": 32,
        "features": 8,
        "schedule": Schedule(
            epochs=1, batch_size=3, learning_rate=1e-9, validate_every=1, workers=0
        ),
        "augmentation": AugmentationRecipe(crop=(32, 48)),
        "classes": tuple(ClassSpec(name=name, colour=(0, 0, 0)) for name in CLASS_NAMES),
    }
    return DenseRecipe(**{**fields, **changes})


def random_network(recipe: DenseRecipe, classes: int = len(CLASS_NAMES)) -> LadderNet:
    network = build_network(recipe, classes)
    random_statistics(network)
    return network.eval()


def write_bundle(folder: Path, network: LadderNet, *, half: bool = False) -> Bundle:
    """A bundle of the layout that training leaves."""
    folder.mkdir()
    export_onnx(network, folder / "dense.onnx")
    if half:
        halve_weights(folder / "dense.onnx")
    return describe(folder, CLASS_NAMES)


def describe(folder: Path, names: tuple[str, ...]) -> Bundle:
    classes = "".join(f"  - {{name: {name}, colour: [0, 0, 0]}}\n" for name in names)
    text = "name: source\nlicence: none\ndense: {file: {path: dense.onnx}, input: {scale: 0.5}}\n"
    (folder / "bundle.yaml").write_text(f"{text}classes:\n{classes}", encoding="utf-8")
    return seal_bundle(folder)


def run_file(bundle: Bundle, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(bundle.folder / "dense.onnx"))
    logits: NDArray[np.float32] = session.run(["logits"], {"image": picture})[0]
    return logits


def pictures(seed: int, count: int = 4) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (count, 3, 64, 96)).astype(np.float32)


class TestNetwork:
    @pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
    @pytest.mark.parametrize("encoder", [RESIDUAL, EFFICIENT], ids=["residual", "efficientnet"])
    def test_computes_what_the_file_does(self, tmp_path: Path, encoder: Any, half: bool) -> None:
        recipe = make_recipe(encoder=encoder)
        source = write_bundle(tmp_path / "source", random_network(recipe), half=half)
        network = random_network(recipe)
        start_dense_from(network, source, torch.from_numpy(pictures(1)), same_classes=True)
        # Another picture than that which the norms have seen.
        other = pictures(2)
        with torch.no_grad():
            found = network(torch.from_numpy(other)).numpy()
        expected = run_file(source, other)
        np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())

    def test_its_norms_know_the_pictures(self, tmp_path: Path) -> None:
        """Training normalises by the batch: with the same pictures nothing must change."""
        recipe = make_recipe()
        source = write_bundle(tmp_path / "source", random_network(recipe))
        network = random_network(recipe)
        images = torch.from_numpy(pictures(1))
        start_dense_from(network, source, images, same_classes=True)
        with torch.no_grad():
            torch.testing.assert_close(
                network.train()(images), network.eval()(images), rtol=1e-3, atol=1e-3
            )

    def test_other_classes_keep_their_classifier(self, tmp_path: Path) -> None:
        recipe = make_recipe()
        learnt = random_network(recipe)
        source = write_bundle(tmp_path / "source", learnt)
        network = random_network(recipe, classes=3)
        weight = network.classifier.weight.clone()
        images = torch.from_numpy(pictures(1))
        start_dense_from(network, source, images, same_classes=False)
        assert torch.equal(network.classifier.weight, weight)
        with torch.no_grad():
            torch.testing.assert_close(
                network.features(images), learnt.features(images), rtol=1e-3, atol=1e-3
            )

    @pytest.mark.parametrize(
        "changes",
        [
            {"ladder": 24},
            {"features": 6},
            {"encoder": ResidualEncoderRecipe(kind="residual", stem=4, widths=(6, 8), blocks=1)},
            {"encoder": EFFICIENT},
        ],
        ids=["ladder", "features", "blocks", "encoder"],
    )
    def test_another_network(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        source = write_bundle(tmp_path / "source", random_network(make_recipe()))
        network = random_network(make_recipe(**changes))
        with pytest.raises(ConfigurationError, match="ladder and features as they were there"):
            start_dense_from(network, source, torch.from_numpy(pictures(1)), same_classes=True)

    @pytest.mark.parametrize("missing", ["bias", "weight"])
    def test_a_file_that_training_did_not_make(self, tmp_path: Path, missing: str) -> None:
        folder = tmp_path / "source"
        folder.mkdir()
        write_pointwise_onnx(folder / "dense.onnx", np.ones((3, 3), np.float32), np.zeros(3))
        model = onnx.load(folder / "dense.onnx")
        conv = next(node for node in model.graph.node if node.op_type == "Conv")
        if missing == "bias":
            del conv.input[2:]
        else:
            constant = next(t for t in model.graph.initializer if t.name == conv.input[1])
            node = helper.make_node(
                "Constant", [], [constant.name],
                value=numpy_helper.from_array(numpy_helper.to_array(constant)),
            )  # fmt: skip
            model.graph.initializer.remove(constant)
            model.graph.node.insert(0, node)
        onnx.save(model, folder / "dense.onnx")
        source = describe(folder, ("a", "b", "c"))
        network = random_network(make_recipe())
        with pytest.raises(ConfigurationError, match="takes what train dense made"):
            start_dense_from(network, source, torch.from_numpy(pictures(1)), same_classes=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    schedule = Schedule(epochs=30, batch_size=3, learning_rate=0.01, validate_every=5, workers=0)
    folder = tmp_path_factory.mktemp("source")
    return train_dense(make_recipe(schedule=schedule, name="source"), folder, resume=False)


class TestRecipe:
    def test_a_step_of_no_size_leaves_the_score_as_it_was(
        self, tmp_path: Path, source: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RUNS", str(source.folder.parent))
        recipe = make_recipe(start_from="$RUNS/bundle")
        bundle = train_dense(recipe, tmp_path / "run", resume=False)
        learnt = source.spec.training["dense_val_miou"]
        assert learnt > 1.0 / len(CLASS_NAMES)  # more than one class alone can reach
        assert bundle.spec.training["dense_val_miou"] == pytest.approx(learnt, abs=0.01)

    def test_pictures_normalised_otherwise(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise AssertionError("loaded ImageNet weights that would be overwritten")

        monkeypatch.setattr("sparserefine_ros.training.dense.load_imagenet_weights", fail)
        source = write_bundle(tmp_path / "source", random_network(make_recipe(encoder=EFFICIENT)))
        pretrained = EfficientNetLiteRecipe(kind="efficientnet", pretrained=True)
        recipe = make_recipe(encoder=pretrained, start_from=str(source.folder))
        with pytest.raises(ConfigurationError, match="normalised as this encoder takes them"):
            DenseTask(recipe)

    def test_resume_asks_for_the_same_source(
        self, tmp_path: Path, source: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOURCE", str(source.folder))
        recipe = make_recipe(start_from="$SOURCE")
        train_dense(recipe, tmp_path / "run", resume=False)
        other = write_bundle(tmp_path / "other", random_network(recipe))
        monkeypatch.setenv("SOURCE", str(other.folder))
        with pytest.raises(ConfigurationError, match="bundle"):
            train_dense(recipe, tmp_path / "run", resume=True)
