# SPDX-License-Identifier: Apache-2.0
"""Training crops: the data sets of a recipe, as far as they fit in memory, randomly transformed."""

from __future__ import annotations

import logging
from typing import Final

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from sparserefine_ros.bundle_spec import DenseInput
from sparserefine_ros.data.datasets import Sample, Split, open_dataset
from sparserefine_ros.data.transforms import Augmentation
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.training.batches import EpochDataset
from sparserefine_ros.training.cache import CachedItems, progress
from sparserefine_ros.training.processes import is_main_process
from sparserefine_ros.training.recipe import AugmentationRecipe, DataSource, TrainingRecipe

# Relative difference of two factors that does not matter; sides are rounded.
_ALIKE: Final = 0.1

_logger = logging.getLogger(__name__)


def check_classes(recipe: TrainingRecipe, class_names: tuple[str, ...]) -> None:
    """Check that every data set of a recipe is labelled with the model's classes.

    Raises:
        ConfigurationError: a data set has other classes, or another order.
        DatasetError: a data set is incomplete.
    """
    splits: list[tuple[str, Split]] = [(source.data, "train") for source in recipe.train]
    for data, split in [*splits, (recipe.validate_on, "val")]:
        found = open_dataset(data, split).class_names
        if found != class_names:
            raise ConfigurationError(
                f"{data}: expected data with the model's classes {list(class_names)}, "
                f"got {list(found)}"
            )


def check_crop(
    taken: DenseInput, augmentation: AugmentationRecipe, picture: tuple[int, int]
) -> None:
    """Warn of crops that do not suit the validation pictures, (H, W), of a dense model.

    Where it sees both reduced differently, what learns from its mistakes on crops would meet others
    on pictures; where crops are larger than pictures ever get, the rest is padding.
    """
    if not is_main_process():
        return
    crop, largest = augmentation.crop, augmentation.scale[1]
    if any(side > largest * limit for side, limit in zip(crop, picture, strict=True)):
        _logger.warning(
            "crops of %d x %d are larger than pictures like those of the validation, %d x %d, "
            "enlarged %g times at most: the rest is padding, which takes time; set a smaller "
            "augmentation.crop",
            *crop, *picture, largest,
        )  # fmt: skip
    factors = []
    for size in (crop, picture):
        low_res_size = taken.low_res_size(size)
        factors.append([full / low for full, low in zip(size, low_res_size, strict=True)])
    of_crop, of_picture = factors
    if any(abs(a / b - 1.0) > _ALIKE for a, b in zip(of_crop, of_picture, strict=True)):
        _logger.warning(
            "the dense model sees crops of %d x %d reduced %.2f times and pictures of %d x %d "
            "%.2f times, so that the training learns from other mistakes than it will meet; choose "
            "crop: [%d, %d], or a model with free sides and dense.input.scale in its bundle",
            *crop, of_crop[0], *picture, of_picture[0], *picture,
        )  # fmt: skip


class AugmentedCrops(EpochDataset):
    """One epoch of crops; item i of epoch e is a pure function of (seed, e, i).

    Args:
        sources: data sets, each repeated as often as it says.
        augmentation: random transforms.
        seed: fixes every crop.
    """

    def __init__(
        self, sources: tuple[DataSource, ...], augmentation: AugmentationRecipe, *, seed: int
    ) -> None:
        datasets = [open_dataset(source.data, "train") for source in sources]
        pictures: ConcatDataset[Sample] = ConcatDataset(datasets)  # type: ignore[arg-type]
        self._pictures = CachedItems(pictures.__getitem__, len(pictures), label="training pictures")
        ends = pictures.cumulative_sizes
        # Which picture each crop of an epoch is cut from.
        self._order = np.concatenate(
            [
                np.tile(np.arange(end - len(dataset), end), source.repeat)
                for source, dataset, end in zip(sources, datasets, ends, strict=True)
            ]
        )
        self._augment = Augmentation(**augmentation.model_dump())
        self._seed = seed
        # Loader processes share the machine with training; OpenCV must not add threads to them.
        cv2.setNumThreads(1)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self._seed, self.epoch, index))
        return self._augment(self._pictures[int(self._order[index])], rng)

    def class_weights(self, classes: int, balance: float) -> Tensor:
        """Loss weights frequency ** -balance, float32 [C]; their mean over the pixels is one.

        Unless `balance` is 0, every picture is read once.
        """
        if balance == 0.0:
            return torch.ones(classes)
        counts = np.zeros(256, np.int64)
        repeats = np.bincount(self._order)
        for index in progress(len(self._pictures), label="class frequencies"):
            labels = self._pictures[index].labels
            counts += repeats[index] * np.bincount(labels.ravel(), minlength=256)
        present = np.maximum(counts[:classes], 1)
        share = torch.from_numpy(present / present.sum())
        weights = share**-balance
        return (weights / (weights * share).sum()).float()
