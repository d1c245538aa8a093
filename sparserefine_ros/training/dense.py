# SPDX-License-Identifier: Apache-2.0
"""Training of a light dense network at low resolution, export to ONNX, and its bundle.

Shape legend: B crops; H, W full resolution; h, w low resolution; C classes.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.bundle import Bundle, create_bundle
from sparserefine_ros.bundle_spec import (
    BundleSpec,
    ClassSpec,
    DenseFeaturesSpec,
    DenseInput,
    DenseOutputSpec,
    DenseSpec,
    FileSpec,
)
from sparserefine_ros.data.datasets import IGNORED_LABEL, Sample, open_dataset
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.metrics import ConfusionMatrix
from sparserefine_ros.image import Normaliser, resize_image
from sparserefine_ros.selection import expand_map, nearest_index
from sparserefine_ros.training.cache import CachedItems
from sparserefine_ros.training.crops import AugmentedCrops, check_classes, check_crop
from sparserefine_ros.training.loop import fit
from sparserefine_ros.training.processes import device_of, in_main_process
from sparserefine_ros.training.recipe import DenseRecipe
from sparserefine_ros.training.run_folder import BUNDLE, prepare_run_folder
from sparserefine_ros.training.start_dense import start_dense_from
from sparserefine_ros.training.teacher import open_named_bundle
from sparserefine_ros.zoo.efficientnet import EfficientNetLite, load_imagenet_weights
from sparserefine_ros.zoo.encoder import Encoder
from sparserefine_ros.zoo.export import export_onnx
from sparserefine_ros.zoo.half_weights import halve_weights
from sparserefine_ros.zoo.ladder import LadderNet
from sparserefine_ros.zoo.residual import ResidualEncoder

_logger = logging.getLogger(__name__)

# Of the whole of the data, for the statistics of the norms.
_START_CROPS = 32

WEIGHTS_FILE = "dense.onnx"


class DenseTask:
    """A `LadderNet` on pictures reduced to low resolution, scored at full resolution."""

    def __init__(self, recipe: DenseRecipe) -> None:
        torch.manual_seed(recipe.seed)
        self.classes = recipe.classes or classes_of(recipe.train[0].data)
        self.source = open_named_bundle(recipe.start_from) if recipe.start_from else None
        self.module = build_network(recipe, len(self.classes))
        # Convolutions on this layout train about twice as fast on CPUs.
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.crops = AugmentedCrops(recipe.train, recipe.augmentation, seed=recipe.seed)
        self.input = dense_input(recipe, self.module.encoder)
        self._normaliser = Normaliser(self.input.normalisation)
        validation = open_dataset(recipe.validate_on, "val")
        height, width = validation[0].labels.shape
        check_crop(self.input, recipe.augmentation, (height, width))
        self._validation = CachedItems(validation.__getitem__, len(validation), label="validation")
        self._class_weights = self.crops.class_weights(len(self.classes), recipe.class_balance)
        if self.source is not None:
            self._start_from(self.source)
        self._check_crop(recipe.augmentation.crop)

    def _check_crop(self, crop: tuple[int, int]) -> None:
        """See that batch norm gets more than one value of a single crop."""
        stride = 2 ** len(self.module.encoder.widths)
        size = self.input.low_res_size(crop)
        if max(size) <= stride:
            raise ConfigurationError(
                f"expected crops of more than a pixel for the network's deepest level, at stride "
                f"{stride}, got crop: {list(crop)}, {size[0]} x {size[1]} at low resolution; "
                "choose larger crops, or fewer levels"
            )

    def _start_from(self, source: Bundle) -> None:
        if source.spec.dense.input.normalisation != self.input.normalisation:
            raise ConfigurationError(
                f"expected pictures normalised as this encoder takes them, {source.folder} takes "
                "them otherwise; choose its encoder, or leave out start_from"
            )
        count = min(_START_CROPS, len(self.crops))
        picks = np.linspace(0, len(self.crops) - 1, count).astype(int)
        images, _ = self.collate([self.crops[int(index)] for index in picks])
        same = source.class_names == tuple(entry.name for entry in self.classes)
        start_dense_from(self.module, source, images, same_classes=same)
        left_out = "" if same else " but for the classifier, as the classes are others"
        _logger.info("the weights start from %s%s", source.name, left_out)

    def collate(self, items: list[Sample]) -> tuple[Tensor, Tensor]:
        """Return network input float32 [B, 3, h, w] and label counts float32 [B, C, h, w]."""
        images = torch.cat([self._network_input(item.image) for item in items])
        size = (images.shape[-2], images.shape[-1])
        classes = len(self._class_weights)
        counts = np.stack([count_labels(item.labels, size, classes) for item in items])
        return images, torch.from_numpy(counts)

    def _network_input(self, image: NDArray[np.uint8]) -> Tensor:
        size = self.input.low_res_size((image.shape[0], image.shape[1]))
        return torch.from_numpy(self._normaliser.images_to_nchw([resize_image(image, size)]))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross entropy at full resolution of the logits expanded as the pipeline expands them.

        All pixels of a block share their logits, so counting the labels of each block first gives
        the same value as expanding, at a fraction of the cost.
        """
        images, counts = batch
        device = device_of(self.module)
        images = images.to(device, memory_format=torch.channels_last)
        logits = low_res_logits(self.module, images)
        weights = counts.to(device) * self._class_weights.to(device)[:, None, None]
        return -(F.log_softmax(logits.float(), 1) * weights).sum() / weights.sum().clamp_min(1.0)

    @torch.no_grad()
    def score(self, module: nn.Module) -> float:
        """Mean IoU at full resolution of the dense result alone."""
        module.eval()
        confusion, device = ConfusionMatrix(len(self._class_weights)), device_of(module)
        for sample in self._validation:
            network_input = self._network_input(sample.image).to(device)
            labels = low_res_logits(module, network_input)[0].argmax(0).to("cpu", torch.uint8)
            full_size = (sample.labels.shape[0], sample.labels.shape[1])
            confusion.update(sample.labels, expand_map(labels.numpy(), full_size))
        return confusion.mean_iou()


def count_labels(
    labels: NDArray[np.uint8], low_res_size: tuple[int, int], classes: int
) -> NDArray[np.float32]:
    """Count the labels in the block of each low-resolution pixel.

    Args:
        labels: uint8 [H, W], 255 ignored.
        low_res_size: (h, w).
        classes: C.

    Returns:
        float32 [C, h, w].
    """
    height, width = low_res_size
    rows = nearest_index(labels.shape[0], height).numpy()
    columns = nearest_index(labels.shape[1], width).numpy()
    cells = (labels.astype(np.int64) * height + rows[:, None]) * width + columns
    counts = np.bincount(cells[labels != IGNORED_LABEL], minlength=classes * height * width)
    return counts.reshape(classes, height, width).astype(np.float32)


def low_res_logits(module: nn.Module, images: Tensor) -> Tensor:
    """Network logits resized to the network's input size, [B, C, h, w]."""
    logits = module(images)
    return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def classes_of(data: str) -> tuple[ClassSpec, ...]:
    """Names and colours of a data set's classes."""
    dataset = open_dataset(data, "train")
    named = zip(dataset.class_names, dataset.colours, strict=True)
    return tuple(ClassSpec(name=name, colour=colour) for name, colour in named)


def build_network(recipe: DenseRecipe, classes: int) -> LadderNet:
    """The recipe's network before training.

    Raises:
        BackendError: the recipe asks for ImageNet weights that are not installed.
    """
    chosen = recipe.encoder
    encoder: Encoder
    if chosen.kind == "efficientnet":
        encoder = efficientnet = EfficientNetLite(chosen.variant)
        if chosen.pretrained and not recipe.start_from:
            load_imagenet_weights(efficientnet, chosen.variant)
    else:
        encoder = ResidualEncoder(stem=chosen.stem, widths=chosen.widths, blocks=chosen.blocks)
    return LadderNet(encoder, classes, ladder=recipe.ladder, features=recipe.features)


def dense_input(recipe: DenseRecipe, encoder: Encoder) -> DenseInput:
    """What the trained network takes."""
    expected = encoder.normalisation
    return DenseInput(
        scale=recipe.scale,
        multiple_of=4,
        name="image",
        channel_order=expected.channel_order,
        mean=expected.mean,
        std=expected.std,
    )


def train_dense(recipe: DenseRecipe, folder: Path, *, resume: bool) -> Bundle:
    """Train by `recipe`; checkpoints and the bundle `folder/bundle` are left in `folder`.

    Raises:
        ConfigurationError: the data's classes are not the recipe's, `start_from` names a network
            that is not this one, or the folder is not free.
        SparseRefineError: see `sparserefine_ros.training.loop.fit`.
    """
    classes = recipe.classes or classes_of(recipe.train[0].data)
    check_classes(recipe, tuple(entry.name for entry in classes))
    prepare_run_folder(folder, WEIGHTS_FILE, resume=resume)
    task = DenseTask(recipe)
    origin = recipe.origin(task.source.digest if task.source else "")
    miou = fit(task, recipe.schedule, folder, seed=recipe.seed, resume=resume, origin=origin)
    onnx, file = folder / WEIGHTS_FILE, FileSpec(path=WEIGHTS_FILE)
    spec = BundleSpec(
        name=recipe.name,
        licence=recipe.licence,
        classes=task.classes,
        dense=DenseSpec(
            file=file,
            input=task.input,
            output=DenseOutputSpec(name="logits", stride=LadderNet.output_stride),
            features=DenseFeaturesSpec(name="features", channels=recipe.features),
        ),
        training={
            "dense_data": recipe.data_kinds(),
            "dense_epochs": recipe.schedule.epochs,
            "dense_seed": recipe.seed,
            "dense_val_miou": round(miou, 4),
            **({"dense_start": task.source.name} if task.source else {}),
        },
    )

    def write() -> Bundle:
        export_onnx(task.module, onnx)
        if recipe.half_weights:
            halve_weights(onnx)
        return create_bundle(folder / BUNDLE, spec, {file.path: onnx})

    return in_main_process(write)
