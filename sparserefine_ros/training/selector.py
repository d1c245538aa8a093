# SPDX-License-Identifier: Apache-2.0
"""Training of the learnable selector, on its own, for the frozen dense model of a bundle.

The network learns which low-resolution pixels the dense model gets wrong (SparseRefine, section
4.3). Its threshold is then set so that a wanted share of the validation pixels is selected.

Shape legend: B crops; h, w low resolution; C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.bundle import Bundle, create_bundle
from sparserefine_ros.bundle_spec import BundleSpec, FileSpec, LearnableSelectorSpec
from sparserefine_ros.data.datasets import Sample, open_dataset
from sparserefine_ros.dense.stage import open_dense_stage
from sparserefine_ros.image import Normaliser
from sparserefine_ros.selectors import SelectorNet
from sparserefine_ros.training.cache import CachedItems
from sparserefine_ros.training.crops import AugmentedCrops, check_classes, check_crop
from sparserefine_ros.training.dense import count_labels
from sparserefine_ros.training.loop import fit
from sparserefine_ros.training.processes import device_of, in_main_process, threads_per_process
from sparserefine_ros.training.recipe import SelectorRecipe
from sparserefine_ros.training.run_folder import BUNDLE, prepare_run_folder
from sparserefine_ros.weights import save_weights

WEIGHTS_FILE = "selector.safetensors"


@dataclass(frozen=True)
class _Evidence:
    """What the network sees of one picture, and what it shall say.

    Attributes:
        image: normalised float32 [1, 3, h, w].
        logits: of the dense model, float32 [1, C, h, w].
        entropy: nats, float32 [1, h, w].
        wrong: labelled pixels of each block that the dense model gets wrong, float32 [h, w].
        labelled: labelled pixels of each block, float32 [h, w].
    """

    image: Tensor
    logits: Tensor
    entropy: Tensor
    wrong: Tensor
    labelled: Tensor


class SelectorTask:
    """A `SelectorNet` that finds the errors of the bundle's dense model."""

    def __init__(self, recipe: SelectorRecipe, bundle: Bundle) -> None:
        torch.manual_seed(recipe.seed)
        self._density = recipe.density
        self._classes = len(bundle.spec.classes)
        self._normaliser = Normaliser(bundle.spec.dense.input.normalisation)
        self._look = open_dense_stage(bundle, threads=threads_per_process())
        self.module = SelectorNet(self._classes)
        self.crops = AugmentedCrops(recipe.train, recipe.augmentation, seed=recipe.seed)
        validation = open_dataset(recipe.validate_on, "val")
        height, width = validation[0].labels.shape
        check_crop(bundle.spec.dense.input, recipe.augmentation, (height, width))
        self._validation = CachedItems(
            lambda index: self._look_at(validation[index]), len(validation), label="validation"
        )

    def _look_at(self, sample: Sample) -> _Evidence:
        found = self._look(sample.image)
        logits, uncertainty = found.dense.logits, found.uncertainty
        height, width = uncertainty.labels.shape
        counts = torch.from_numpy(count_labels(sample.labels, (height, width), self._classes))
        right = counts.gather(0, uncertainty.labels.long()[None])[0]
        labelled = counts.sum(0)
        image = torch.from_numpy(self._normaliser.images_to_nchw([found.low_res_image]))
        return _Evidence(image, logits[None], uncertainty.entropy[None], labelled - right, labelled)

    def collate(self, items: list[Sample]) -> list[Sample]:
        """Crops stay apart until the dense model has seen them."""
        return items

    def loss(self, batch: list[Sample]) -> Tensor:
        """Cross entropy with "wrong" or "right" of every labelled full-resolution pixel."""
        crops, device = [self._look_at(sample) for sample in batch], device_of(self.module)
        images, logits, entropy = (
            torch.cat(parts).to(device)
            for parts in zip(*((c.image, c.logits, c.entropy) for c in crops), strict=True)
        )
        found = self.module(images, logits, entropy).float()
        wrong = torch.stack([crop.wrong for crop in crops]).to(device)
        labelled = torch.stack([crop.labelled for crop in crops]).to(device)
        share = wrong / labelled.clamp_min(1.0)
        loss = F.binary_cross_entropy_with_logits(found, share, labelled, reduction="sum")
        return loss / labelled.sum().clamp_min(1.0)

    def score(self, module: nn.Module) -> float:
        """Selector recall on the validation data at the wanted density."""
        return self.calibrate(module)[1]

    @torch.no_grad()
    def calibrate(self, module: nn.Module) -> tuple[float, float]:
        """Threshold on the probability that gives the wanted density, and the recall there.

        The recall is 1 when nothing is wrong, NaN when nothing is labelled.
        """
        module.eval()
        device = device_of(module)
        found_of, wrong_of = [], []
        for e in self._validation:
            logits = module(e.image.to(device), e.logits.to(device), e.entropy.to(device))
            found_of.append(logits.sigmoid().cpu().numpy().ravel())
            wrong_of.append(e.wrong.numpy().ravel())
        probabilities, wrong = np.concatenate(found_of), np.concatenate(wrong_of)
        threshold = float(np.quantile(probabilities, 1.0 - self._density))
        found = wrong[probabilities > threshold].sum()
        if wrong.sum() == 0.0:
            labelled = any(bool(e.labelled.any()) for e in self._validation)
            return threshold, 1.0 if labelled else math.nan
        return threshold, float(found / wrong.sum())


def train_selector(recipe: SelectorRecipe, bundle: Bundle, folder: Path, *, resume: bool) -> Bundle:
    """Train by `recipe`; checkpoints and the bundle `folder/bundle` are left in `folder`.

    The bundle keeps its refiner, which was trained with another selection.

    Raises:
        ConfigurationError: the data's classes are not the bundle's, or the folder is not free.
        SparseRefineError: see `sparserefine_ros.training.loop.fit`.
    """
    check_classes(recipe, bundle.class_names)
    prepare_run_folder(folder, WEIGHTS_FILE, resume=resume, bundle=bundle)
    task = SelectorTask(recipe, bundle)
    origin = recipe.origin(bundle.digest)
    fit(task, recipe.schedule, folder, seed=recipe.seed, resume=resume, origin=origin)

    def write() -> Bundle:
        save_weights(task.module, folder / WEIGHTS_FILE)
        spec = _trained_spec(task, recipe, bundle)
        sources = {file.path: bundle.path(file) for file in spec.files()}
        sources[WEIGHTS_FILE] = folder / WEIGHTS_FILE
        return create_bundle(folder / BUNDLE, spec, sources)

    return in_main_process(write)


def _trained_spec(task: SelectorTask, recipe: SelectorRecipe, bundle: Bundle) -> BundleSpec:
    threshold, recall = task.calibrate(task.module)
    selector = LearnableSelectorSpec(
        kind="learnable",
        file=FileSpec(path=WEIGHTS_FILE),
        threshold=round(threshold, 6),
        max_pixels=recipe.max_pixels,
    )
    record = {
        **bundle.spec.training,
        "selector_data": recipe.data_kinds(),
        "selector_epochs": recipe.schedule.epochs,
        "selector_val_density": recipe.density,
        "selector_val_recall": round(recall, 4),
    }
    update = {"name": recipe.name, "selector": selector, "training": record}
    return bundle.spec.model_copy(update=update)
