# SPDX-License-Identifier: Apache-2.0
"""Training recipes: what `sparserefine train` reads."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, field_validator

from sparserefine_ros.bundle_spec import (
    Blocks,
    Channels,
    ClassSpec,
    EnsemblerKind,
    ExtractorSpec,
    Inputs,
    SelectorSpec,
    Side,
    Widths,
)
from sparserefine_ros.configuration import Record, kind_or
from sparserefine_ros.zoo.efficientnet import Variant

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Factor = Annotated[float, Field(ge=0.01, le=100.0)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class DataSource(Record):
    """A data set and how often an epoch goes through it.

    Attributes:
        data: text form of the data set, see `sparserefine_ros.data.datasets`.
        repeat: passes through it in each epoch.
    """

    data: str
    repeat: Annotated[int, Field(ge=1, le=100_000)] = 1


class AugmentationRecipe(Record):
    """Random transforms, see `sparserefine_ros.data.transforms.Augmentation`.

    Attributes:
        crop: [height, width] at full resolution.
        scale: [smallest, largest] factor on the picture.
        max_class_share: largest share of one class in a crop.
    """

    crop: tuple[Side, Side]
    scale: tuple[Factor, Factor] = (0.5, 2.0)
    max_class_share: Share = 0.75

    @field_validator("scale")
    @classmethod
    def _grows(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("expected the smallest factor first")
        return value


class Schedule(Record):
    """Optimisation: AdamW with a cosine from `learning_rate` to zero.

    Attributes:
        epochs: passes through all sources.
        batch_size: crops per batch, in each process.
        accumulate: batches per step of the optimiser, in each process.
        learning_rate: peak value.
        weight_decay: AdamW's decoupled decay.
        warmup_epochs: linear rise to the peak.
        validate_every: epochs between validations.
        gradient_clip: largest gradient norm; .inf leaves gradients as they are.
        average_decay: decay per step of the moving average of the weights; 0 averages nothing.
        workers: processes that prepare crops.
        bfloat16: mixed precision where the device multiplies bfloat16 itself, else float32.
        tensorboard: write TensorBoard scalars beside the CSV log.
    """

    epochs: Count
    batch_size: Count
    accumulate: Count = 1
    learning_rate: Annotated[float, Field(gt=0.0, le=1e3)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0.0, le=1e3)] = 0.05
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 1.0
    validate_every: Count = 10
    gradient_clip: Annotated[float, Field(gt=0.0, allow_inf_nan=True)] = 1.0
    average_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    bfloat16: bool = False
    tensorboard: bool = False


class TrainingRecipe(Record):
    """What every training needs.

    Attributes:
        name: name of the bundle.
        seed: fixes initial weights and augmentation.
        train: sources of an epoch.
        validate_on: data set (its val split) that selects the best weights.
        class_balance: classes weigh frequency ** -class_balance in the loss; 0 for none.
        schedule: optimisation.
        augmentation: random transforms.
    """

    name: str = Field(min_length=1)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    train: tuple[DataSource, ...] = Field(min_length=1)
    validate_on: str
    class_balance: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    schedule: Schedule
    augmentation: AugmentationRecipe

    def data_kinds(self) -> tuple[str, ...]:
        """What a bundle records of `train`: kinds of data sets, without their folders."""
        return tuple(os.path.expandvars(source.data).split(":")[0] for source in self.train)

    def origin(self, bundle_digest: str = "") -> dict[str, Any]:
        """What the weights of this recipe's run depend on beside the schedule, as plain values.

        The schedule may change when a run goes on; the digest is of the bundle trained for.
        """
        left_out = {"schedule", "calibrate"}  # a refiner is calibrated when its weights are done
        return {**self.model_dump(mode="json", exclude=left_out), "bundle": bundle_digest}


class ResidualEncoderRecipe(Record):
    """A residual encoder from random weights, see `sparserefine_ros.zoo.residual`.

    Attributes:
        stem: channels at stride 2.
        widths: channels of the stages at strides 4, 8, ...
        blocks: residual blocks per stage.
    """

    kind: Literal["residual"] = "residual"
    stem: Channels = 24
    widths: Widths = (32, 64, 128, 192)
    blocks: Blocks = 2


class EfficientNetLiteRecipe(Record):
    """An EfficientNet-Lite encoder, see `sparserefine_ros.zoo.efficientnet`.

    Attributes:
        variant: size.
        pretrained: start from ImageNet weights instead of random ones.
    """

    kind: Literal["efficientnet"]
    variant: Variant = "lite0"
    pretrained: bool = True


class DenseRecipe(TrainingRecipe):
    """Trains a light dense network and leaves a bundle without a refiner.

    Attributes:
        scale: low resolution / full resolution.
        encoder: encoder of the network.
        ladder: channels of the decoder.
        features: channels of the features that the classifier, and a refiner, see.
        classes: names and colours in label order; left out, they are those of the data.
        licence: licence note of the bundle.
        half_weights: store the weights as float16; the network still computes in float32.
        start_from: bundle whose dense model, of the same encoder, ladder and features, lends its
            weights to begin with; left out, they are random or ImageNet's.
    """

    scale: Share = 0.5
    encoder: Annotated[
        Annotated[ResidualEncoderRecipe, Tag("kind=residual")]
        | Annotated[EfficientNetLiteRecipe, Tag("kind=efficientnet")],
        kind_or("residual"),
    ]
    ladder: Channels = 64
    features: Channels = 32
    classes: tuple[ClassSpec, ...] | None = Field(None, min_length=2)
    licence: str
    half_weights: bool = False
    start_from: str | None = None


class RefinerRecipe(TrainingRecipe):
    """Trains a refiner for the dense model of a bundle and leaves a bundle with both.

    Attributes:
        selector: which pixels are refined; left out, it is the bundle's.
        max_train_share: pixel budget of a training crop, as a share of its pixels.
        extractor: the network that sees the selected pixels.
        inputs: features per pixel.
        ensembler: fusion with the dense logits.
        start_from: bundle whose refiner lends its weights to begin with, see
            `sparserefine_ros.training.start`; left out, they are random.
        teacher: bundle whose dense model, usually one trained at full resolution, is imitated too.
        teacher_share: weight of the imitation in the loss; the labels weigh the rest.
        dice: weight of the Dice loss, which is added; 0 for none.
        calibrate: whether the fused logits of a gated ensembler are made as confident on the
            validation data as they are right there, see `sparserefine_ros.training.temperature`.
    """

    selector: SelectorSpec | None = None
    max_train_share: Share = 1.0
    extractor: ExtractorSpec
    inputs: Inputs = ("rgb",)
    ensembler: EnsemblerKind = "gated"
    start_from: str | None = None
    teacher: str | None = None
    teacher_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    dice: Annotated[float, Field(ge=0.0)] = 0.0
    calibrate: bool = True


class SelectorRecipe(TrainingRecipe):
    """Trains the learnable selector for the dense model of a bundle.

    Attributes:
        density: share of the validation pixels that the threshold shall select.
        max_pixels: pixel budget written into the bundle, 0 for none.
    """

    density: Share = 0.12
    max_pixels: Annotated[int, Field(ge=0)] = 0

    @field_validator("class_balance")
    @classmethod
    def _has_no_classes(cls, value: float) -> float:
        if value:
            raise ValueError("expected none, for a selector tells right from wrong, not classes")
        return value
