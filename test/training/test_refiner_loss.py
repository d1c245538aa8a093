# SPDX-License-Identifier: Apache-2.0
"""The loss of a refiner against the definition written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import with_sections
from numpy.typing import NDArray
from oracle import DenseUNet, grid_to_rows
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from training.refining import (
    BIAS,
    CLASSES,
    MEAN,
    STD,
    THRESHOLD,
    WEIGHT,
    hand_written,
    make_recipe,
    write_camvid,
)

from sparserefine_ros.bundle import Bundle, seal_bundle
from sparserefine_ros.bundle_spec import EntropySelectorSpec
from sparserefine_ros.data.datasets import Sample, open_dataset
from sparserefine_ros.data.street import CLASS_NAMES
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.selectors import SelectorNet
from sparserefine_ros.training import cache
from sparserefine_ros.training import refiner as module_under_test
from sparserefine_ros.training.losses import dice_loss
from sparserefine_ros.training.recipe import AugmentationRecipe
from sparserefine_ros.training.refiner import RefinerTask
from sparserefine_ros.weights import save_weights


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture(scope="module")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A foreign ONNX model made a bundle by a hand-written description alone."""
    return hand_written(tmp_path_factory.mktemp("third-party"), scale=0.5)


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
