# SPDX-License-Identifier: Apache-2.0
"""Training of a refiner for the frozen dense model of a bundle.

The dense model, the selection and the features are those of the pipeline; only the sparse UNet and
the ensembler learn. The loss is the reference's: cross entropy of the refined logits plus that of
the fused logits, both at the selected pixels. With a teacher, part of each cross entropy is that
against the teacher's probabilities (Hinton et al., "Distilling the Knowledge in a Neural Network",
2015), which tell more of a pixel than its label and are there where labels are not. A recipe may
add the Dice loss of both logits, see `sparserefine_ros.training.losses`.

The dense model and the selection run on the CPU, what learns where its weights are.

Shape legend: B crops; H, W full resolution; N selected pixels of all crops; C classes.
"""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.bundle import Bundle, create_bundle
from sparserefine_ros.bundle_spec import BundleSpec, FileSpec
from sparserefine_ros.clock import StageClock
from sparserefine_ros.configuration import describe_mistakes
from sparserefine_ros.data.datasets import IGNORED_LABEL, Sample, open_dataset
from sparserefine_ros.dense.stage import open_dense_stage
from sparserefine_ros.ensemble import GatedEnsembler
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.metrics import ConfusionMatrix
from sparserefine_ros.maps import assemble_maps
from sparserefine_ros.records import DenseOutput, Map, Selection, Uncertainty
from sparserefine_ros.refine_stage import CpuRefineStage
from sparserefine_ros.refiner import Refiner
from sparserefine_ros.sampling import FeatureSampler, SelectedBlocks
from sparserefine_ros.selection import expand_map
from sparserefine_ros.selectors import Selector, open_selector
from sparserefine_ros.sparse.plan import build_plan
from sparserefine_ros.training.cache import CachedItems
from sparserefine_ros.training.crops import AugmentedCrops, check_classes, check_crop
from sparserefine_ros.training.loop import fit
from sparserefine_ros.training.losses import dice_loss
from sparserefine_ros.training.processes import (
    device_of,
    in_main_process,
    is_main_process,
    threads_per_process,
)
from sparserefine_ros.training.recipe import RefinerRecipe
from sparserefine_ros.training.run_folder import BUNDLE, prepare_run_folder
from sparserefine_ros.training.start import start_from
from sparserefine_ros.training.teacher import Teacher, open_named_bundle
from sparserefine_ros.training.temperature import fit_temperature
from sparserefine_ros.weights import save_weights

WEIGHTS_FILE = "refiner.safetensors"

# Pixels to fit one number to.
_MOST_OF_A_FRAME: Final = 20_000
_MOST_OF_ALL: Final = 1 << 21

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Selected:
    """A picture, what the dense model says of it, and the pixels to refine."""

    sample: Sample
    dense: DenseOutput
    uncertainty: Uncertainty
    selection: Selection


class RefinerTask:
    """A `Refiner` on the pixels that the bundle's dense model is unsure of."""

    def __init__(self, recipe: RefinerRecipe, bundle: Bundle) -> None:
        self._recipe = recipe
        self.bundle = bundle_with_refiner(bundle, recipe)
        self.source: Bundle | None = None
        spec = self.bundle.spec.refiner
        assert spec is not None  # bundle_with_refiner put it there
        torch.manual_seed(recipe.seed)
        self._classes = len(self.bundle.spec.classes)
        self.module = Refiner(spec, self.bundle.spec.refiner_channels(), self._classes)
        if recipe.start_from:
            self.source = open_named_bundle(recipe.start_from)
            share = start_from(self.module, self.bundle, self.source)
            _logger.info("%.0f %% of the weights start from %s", 100.0 * share, self.source.name)
        self.crops = AugmentedCrops(recipe.train, recipe.augmentation, seed=recipe.seed)
        self._class_weights = self.crops.class_weights(self._classes, recipe.class_balance)
        self._sample_features = FeatureSampler(spec)
        self._teacher = Teacher(recipe.teacher, bundle) if recipe.teacher else None
        self._look = open_dense_stage(self.bundle, threads=threads_per_process())
        validation, whole = open_dataset(recipe.validate_on, "val"), open_selector(self.bundle)
        height, width = validation[0].labels.shape
        check_crop(bundle.spec.dense.input, recipe.augmentation, (height, width))
        self._validation = CachedItems(
            lambda index: self._select(validation[index], whole),
            len(validation),
            label="validation",
        )
        self._selector = open_selector(self.bundle)
        height, width = recipe.augmentation.crop
        self._selector.max_pixels = int(recipe.max_train_share * height * width)

    @property
    def teacher_digest(self) -> str:
        """Of the teacher's bundle, which the recipe may name by a variable; empty without one."""
        return self._teacher.digest if self._teacher else ""

    def _select(self, sample: Sample, selector: Selector) -> _Selected:
        found = self._look(sample.image)
        selection = selector(
            found.low_res_image, found.dense, found.uncertainty, found.full_size, sample.labels
        )
        return _Selected(sample, found.dense, found.uncertainty, selection)

    def collate(self, items: list[Sample]) -> list[Sample]:
        """Crops stay apart until their pixels are selected."""
        return items

    def loss(self, batch: list[Sample]) -> Tensor:
        """Loss of the refined plus that of the fused logits at the selected pixels."""
        pixels_per_crop, teach, device = batch[0].labels.size, self._teacher, device_of(self.module)
        # What is frozen computes as at inference.
        with torch.autocast("cpu", enabled=False):
            crops = [self._select(sample, self._selector) for sample in batch]
            taught = [teach(c.sample.image, c.selection) for c in crops] if teach else []
        sites = torch.cat(
            [crop.selection.pixels + i * pixels_per_crop for i, crop in enumerate(crops)]
        )
        spec = self.bundle.spec.refiner
        assert spec is not None
        height, width = batch[0].labels.shape
        plan = build_plan(sites, (len(crops), height, width), spec.depth, bounds=spec.bounds)
        blocks_of = [SelectedBlocks(crop.selection) for crop in crops]
        features = torch.cat(
            [
                self._sample_features(crop.sample.image, crop.dense, blocks)
                for crop, blocks in zip(crops, blocks_of, strict=True)
            ]
        )
        dense_logits = torch.cat(
            [
                blocks.sample(crop.dense.logits)
                for crop, blocks in zip(crops, blocks_of, strict=True)
            ]
        ).to(device)
        truth = torch.cat([_labels_at(crop) for crop in crops]).to(device)
        goal = torch.cat(taught, 1).to(device) if taught else None
        refined_logits = self.module.extractor(features.to(device), plan.to(device))
        fused_logits = self.module.ensembler(dense_logits, refined_logits)
        return sum(
            (self._loss_of(logits, truth, goal) for logits in (refined_logits, fused_logits)),
            start=refined_logits.new_zeros(()),
        )

    def _loss_of(self, logits: Tensor, truth: Tensor, taught: Tensor | None) -> Tensor:
        # Classes first: softmax over the few classes of a row is several times slower.
        columns = logits.float().t().contiguous()
        loss = self._cross_entropy(columns, truth)
        if taught is not None and taught.numel() > 0:
            share = self._recipe.teacher_share
            loss = (1.0 - share) * loss + share * F.cross_entropy(columns[None], taught[None])
        if self._recipe.dice > 0.0:
            loss = loss + self._recipe.dice * dice_loss(columns, truth)
        return loss

    def _cross_entropy(self, columns: Tensor, truth: Tensor) -> Tensor:
        weights = self._class_weights.to(columns.device)
        loss = F.cross_entropy(
            columns[None], truth[None], weights, ignore_index=IGNORED_LABEL, reduction="sum"
        )
        valid = truth[truth != IGNORED_LABEL]
        return loss / weights[valid].sum().clamp_min(1.0)

    def calibrate(self) -> float | None:
        """Divide the fused logits by the temperature that fits the validation data; return it.

        None where there is nothing to divide: another ensembler, or no pixel selected.
        """
        ensembler = self.module.ensembler
        if not isinstance(ensembler, GatedEnsembler):
            return None
        parts = [self._evidence(frame) for frame in self._validation if frame.selection.count]
        if not parts:
            return None
        logits, truth = (torch.cat(list(each)) for each in zip(*parts, strict=True))
        temperature = fit_temperature(logits, truth)
        ensembler.divide_logits(temperature)
        return temperature

    @torch.inference_mode()
    def _evidence(self, frame: _Selected) -> tuple[Tensor, Tensor]:
        """Fused logits and labels of some refined pixels, evenly spread."""
        spec, selection, module = self.bundle.spec.refiner, frame.selection, self.module.eval()
        assert spec is not None
        plan = build_plan(
            selection.pixels, (1, *selection.full_size), spec.depth, bounds=spec.bounds
        )
        blocks = SelectedBlocks(selection)
        dense_logits = blocks.sample(frame.dense.logits)
        features = self._sample_features(frame.sample.image, frame.dense, blocks)
        fused = module.ensembler(dense_logits, module.extractor(features, plan))
        wanted = max(1, min(_MOST_OF_A_FRAME, _MOST_OF_ALL // len(self._validation)))
        step = -(-selection.count // wanted)
        # Copies: views would keep the whole of every frame.
        return fused[::step].clone(), _labels_at(frame)[::step].clone()

    def score(self, module: nn.Module) -> float:
        """Mean IoU at full resolution through the inference stages, on the CPU."""
        assert isinstance(module, Refiner)
        refine = CpuRefineStage(copy.deepcopy(module).eval().cpu(), self.bundle)
        confusion = ConfusionMatrix(self._classes)
        for frame in self._validation:
            fused = refine(
                frame.sample.image,
                frame.dense,
                frame.selection,
                StageClock(),
                frame.sample.labels,
            )
            maps = assemble_maps(frame.uncertainty, frame.selection, fused, frozenset({Map.LABELS}))
            assert maps.labels is not None
            confusion.update(frame.sample.labels, maps.labels)
        return confusion.mean_iou()

    def dense_score(self) -> float:
        """Mean IoU of the dense model alone, as `score` measures it."""
        confusion = ConfusionMatrix(self._classes)
        for frame in self._validation:
            labels = frame.uncertainty.labels.numpy()
            confusion.update(frame.sample.labels, expand_map(labels, frame.selection.full_size))
        return confusion.mean_iou()


def _labels_at(crop: _Selected) -> Tensor:
    flat = torch.from_numpy(crop.sample.labels).view(-1)
    return flat.index_select(0, crop.selection.pixels).long()


def bundle_with_refiner(bundle: Bundle, recipe: RefinerRecipe) -> Bundle:
    """The dense bundle, described with the refiner that `recipe` trains; nothing is written.

    Raises:
        ConfigurationError: the recipe does not fit the bundle.
    """
    if recipe.selector is None and bundle.spec.selector is None:
        raise ConfigurationError(
            f"recipe {recipe.name}: expected a selector here or in {bundle.name}; add one, such as "
            "selector: {kind: entropy, threshold_nats: 0.3}"
        )
    fields = {"file": FileSpec(path=WEIGHTS_FILE), "inputs": recipe.inputs}
    refiner = {**fields, "ensembler": recipe.ensembler, **recipe.extractor.model_dump()}
    update = {"name": recipe.name, "selector": recipe.selector or bundle.spec.selector}
    spec = bundle.spec.model_dump() | update | {"refiner": refiner}
    try:
        # A threshold may not fit the number of classes, inputs may not fit the dense model.
        return Bundle(bundle.folder, BundleSpec.model_validate(spec), bundle.digest)
    except ValidationError as err:
        raise ConfigurationError(f"recipe {recipe.name}: {describe_mistakes(err)}") from err


def train_refiner(recipe: RefinerRecipe, bundle: Bundle, folder: Path, *, resume: bool) -> Bundle:
    """Train by `recipe`; checkpoints and the bundle `folder/bundle` are left in `folder`.

    Raises:
        ConfigurationError: the data's classes are not the bundle's, or the folder is not free.
        SparseRefineError: see `sparserefine_ros.training.loop.fit`.
    """
    check_classes(recipe, bundle.class_names)
    prepare_run_folder(folder, WEIGHTS_FILE, resume=resume, bundle=bundle)
    task = RefinerTask(recipe, bundle)
    origin = {**recipe.origin(bundle.digest), "teacher_digest": task.teacher_digest}
    dense_miou = task.dense_score() if is_main_process() else math.nan
    if is_main_process():
        _logger.info("mean IoU of the dense model alone on the validation data: %.4f", dense_miou)
    miou = fit(task, recipe.schedule, folder, seed=recipe.seed, resume=resume, origin=origin)

    if miou < dense_miou:
        _logger.warning(
            "the refined result is worse than the dense one alone: mean IoU %.4f, %.4f without; "
            "train for longer, on more data, or refine more pixels", miou, dense_miou,
        )  # fmt: skip

    def write() -> Bundle:
        temperature = task.calibrate() if recipe.calibrate else None
        earlier = bundle.spec.training.items()
        record = {
            **{key: value for key, value in earlier if not key.startswith("refine")},
            "refiner_data": recipe.data_kinds(),
            "refiner_epochs": recipe.schedule.epochs,
            "refiner_seed": recipe.seed,
            "refined_val_miou": round(miou, 4),
            "refiner_dense_val_miou": round(dense_miou, 4),
            **({"refiner_start": task.source.name} if task.source else {}),
            **({"refiner_temperature": round(temperature, 4)} if temperature else {}),
        }
        spec = task.bundle.spec.model_copy(update={"training": record})
        sources = {file.path: bundle.path(file) for file in spec.files()}
        sources[WEIGHTS_FILE] = folder / WEIGHTS_FILE
        save_weights(task.module, folder / WEIGHTS_FILE)
        return create_bundle(folder / BUNDLE, spec, sources)

    return in_main_process(write)
