# SPDX-License-Identifier: Apache-2.0
"""What `bundle.yaml` holds: frozen, validated records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, Tag, model_validator
from typing_extensions import Self

from sparserefine_ros.configuration import Record, kind_or
from sparserefine_ros.image import MAX_SIDE, ChannelOrder, Normalisation

FORMAT: Final = 1
UNSEALED: Final = "0" * 64

InputFeature = Literal["rgb", "logits", "features"]
PlanBounds = Literal["image", "data"]
EnsemblerKind = Literal["gated", "entropy", "direct", "oracle"]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Byte = Annotated[int, Field(ge=0, le=255)]
# Whatever is larger is a mistake, and would be found only when memory or patience gives out.
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Channels = Annotated[int, Field(ge=1, le=8192)]
Widths = Annotated[tuple[Channels, ...], Field(min_length=1, max_length=10)]
Blocks = Annotated[int, Field(ge=1, le=64)]
Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]


def _all_different(values: tuple[InputFeature, ...]) -> tuple[InputFeature, ...]:
    if len(set(values)) != len(values):
        raise ValueError("expected each feature once")
    return values


Inputs = Annotated[tuple[InputFeature, ...], Field(min_length=1), AfterValidator(_all_different)]

IMAGENET_MEAN: Final = (123.675, 116.28, 103.53)
IMAGENET_STD: Final = (58.395, 57.12, 57.375)


class ClassSpec(Record):
    """A class; its position in the list is its label.

    Attributes:
        name: unique name.
        colour: RGB, 0 .. 255.
    """

    name: Annotated[str, Field(min_length=1)]
    colour: tuple[Byte, Byte, Byte]


class FileSpec(Record):
    """A file of the bundle.

    Attributes:
        path: plain file name inside the bundle folder.
        sha256: hex digest of its content. Left out, it counts as wrong until the bundle is sealed.
    """

    path: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    sha256: Sha256 = UNSEALED


class DenseInput(Record):
    """What the dense model takes.

    Attributes:
        size: [height, width] the model runs at whatever the picture's size; or give `scale`.
        scale: low resolution / full resolution, for models with a free input size.
        multiple_of: sides from `scale` are rounded to a multiple of this, at least one.
        name: graph input; may be left out when there is only one.
        layout: NCHW or NHWC.
        channel_order: RGB or BGR.
        mean, std: on the 0-255 scale, in the model's channel order.
    """

    size: tuple[Side, Side] | None = None
    scale: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    multiple_of: Side = 1
    name: str | None = None
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channel_order: ChannelOrder = "RGB"
    mean: tuple[Mean, Mean, Mean] = IMAGENET_MEAN
    std: tuple[Deviation, Deviation, Deviation] = IMAGENET_STD

    @model_validator(mode="after")
    def _one_size_rule(self) -> Self:
        if (self.size is None) == (self.scale is None):
            raise ValueError("expected either size or scale")
        return self

    @property
    def normalisation(self) -> Normalisation:
        """Channel order and statistics."""
        return Normalisation(self.channel_order, self.mean, self.std)

    def low_res_size(self, full_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) at which the dense model sees a picture of `full_size` (H, W)."""
        if self.size is not None:
            return self.size
        assert self.scale is not None  # held by the validator
        step = self.multiple_of
        height, width = (max(step, round(side * self.scale / step) * step) for side in full_size)
        return height, width


class DenseOutputSpec(Record):
    """What the dense model returns.

    Attributes:
        name: graph output; may be left out when there is only one.
        kind: logits, or probabilities (their logarithm is used as logits).
        stride: input size / output size; the output is resized bilinearly to the input size.
        layout: NCHW or NHWC.
    """

    name: str | None = None
    kind: Literal["logits", "probabilities"] = "logits"
    stride: Side = 1
    layout: Literal["NCHW", "NHWC"] = "NCHW"


class DenseFeaturesSpec(Record):
    """A second output of the dense model: the features its classifier sees.

    Attributes:
        name: graph output.
        channels: F.
        layout: NCHW or NHWC; the size is the output's own.
    """

    name: str
    channels: Channels
    layout: Literal["NCHW", "NHWC"] = "NCHW"


class DenseSpec(Record):
    """The dense model: an ONNX file, its input, its output, and its features where it has them."""

    file: FileSpec
    input: DenseInput
    output: DenseOutputSpec = DenseOutputSpec()
    features: DenseFeaturesSpec | None = None


class _SelectorSpec(Record):
    """What every selector has.

    Attributes:
        max_pixels: pixel budget at full resolution; 0 for no limit. The pixels that the selector
            ranks highest are kept.
    """

    max_pixels: Annotated[int, Field(ge=0)] = 0


class EntropySelectorSpec(_SelectorSpec):
    """Refines where the dense result is unsure.

    Attributes:
        threshold_nats: pixels whose entropy is above it are refined.
    """

    kind: Literal["entropy"] = "entropy"
    threshold_nats: Annotated[float, Field(ge=0.0)]


class MagnitudeSelectorSpec(_SelectorSpec):
    """Refines where the dense model's features are large.

    Attributes:
        threshold: pixels whose features have a greater L2 norm are refined.
    """

    kind: Literal["magnitude"]
    threshold: Annotated[float, Field(ge=0.0)]


class LearnableSelectorSpec(_SelectorSpec):
    """Refines where a small network expects the dense result to be wrong.

    Attributes:
        file: safetensors file with the network's weights.
        threshold: pixels whose probability of being wrong is above it are refined.
    """

    kind: Literal["learnable"]
    file: FileSpec
    threshold: Annotated[float, Field(ge=0.0, le=1.0)]


class RandomSelectorSpec(_SelectorSpec):
    """Refines pixels drawn by chance, the same ones in every picture of a size; for comparison.

    Attributes:
        density: share of the low-resolution pixels.
        seed: which ones.
    """

    kind: Literal["random"]
    density: Annotated[float, Field(ge=0.0, le=1.0)]
    seed: Annotated[int, Field(ge=0)] = 0


class OracleSelectorSpec(_SelectorSpec):
    """Refines the pixels that the dense model gets wrong by the labels; for ablations."""

    kind: Literal["oracle"]


SelectorSpec = Annotated[
    Annotated[EntropySelectorSpec, Tag("kind=entropy")]
    | Annotated[MagnitudeSelectorSpec, Tag("kind=magnitude")]
    | Annotated[LearnableSelectorSpec, Tag("kind=learnable")]
    | Annotated[RandomSelectorSpec, Tag("kind=random")]
    | Annotated[OracleSelectorSpec, Tag("kind=oracle")],
    kind_or("entropy"),
]


class _RefinerSpec(Record):
    """What every refiner has; the ensembler's weights are in the same file.

    Attributes:
        file: safetensors file.
        inputs: features per pixel, concatenated in this order.
        channel_order: order of the picture's channels in the features.
        mean, std: on the 0-255 scale, in that order.
        ensembler: how refined and dense logits are fused.
    """

    file: FileSpec
    inputs: Inputs = ("rgb",)
    channel_order: ChannelOrder = "RGB"
    mean: tuple[Mean, Mean, Mean] = IMAGENET_MEAN
    std: tuple[Deviation, Deviation, Deviation] = IMAGENET_STD
    ensembler: EnsemblerKind = "gated"

    @property
    def normalisation(self) -> Normalisation:
        """Channel order and statistics."""
        return Normalisation(self.channel_order, self.mean, self.std)


class UNetSpec(Record):
    """Size of a sparse UNet.

    Attributes:
        widths: channels per level, finest first.
        blocks: residual blocks on each side of a level.
        bounds: trailing rows and columns of strided convolutions follow the image or, as the
            reference release does, the active data.
    """

    kind: Literal["unet"] = "unet"
    widths: Widths
    blocks: Blocks = 2
    bounds: PlanBounds = "image"

    @property
    def depth(self) -> int:
        """Levels of the plan it runs on."""
        return len(self.widths)


class PointNetSpec(Record):
    """Size of a PointNet.

    Attributes:
        widths: channels of the layers before the global maximum.
    """

    kind: Literal["pointnet"]
    widths: Widths
    bounds: ClassVar[PlanBounds] = "image"
    depth: ClassVar[int] = 1


ExtractorSpec = Annotated[
    Annotated[UNetSpec, Tag("kind=unet")] | Annotated[PointNetSpec, Tag("kind=pointnet")],
    kind_or("unet"),
]


class UNetRefinerSpec(_RefinerSpec, UNetSpec):
    """A refiner whose extractor is a sparse UNet."""


class PointNetRefinerSpec(_RefinerSpec, PointNetSpec):
    """A refiner whose extractor is a PointNet."""


RefinerSpec = Annotated[
    Annotated[UNetRefinerSpec, Tag("kind=unet")]
    | Annotated[PointNetRefinerSpec, Tag("kind=pointnet")],
    kind_or("unet"),
]


class BundleSpec(Record):
    """Content of `bundle.yaml`.

    Attributes:
        format: version of this format.
        name: name of the bundle.
        licence: licence of weights and data, in words.
        classes: names and colours in label order.
        dense: the dense model.
        selector: which pixels are refined; needed with a refiner.
        refiner: the sparse refiner; None for a plain dense segmenter.
        training: record of how the weights came about; free keys.
    """

    format: Literal[1] = FORMAT
    name: Annotated[str, Field(min_length=1)]
    licence: str
    classes: tuple[ClassSpec, ...] = Field(min_length=2, max_length=255)
    dense: DenseSpec
    selector: SelectorSpec | None = None
    refiner: RefinerSpec | None = None
    training: Mapping[str, str | float | int | tuple[str, ...] | Mapping[str, float]] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [entry.name for entry in self.classes]
        if len(set(names)) != len(names):
            raise ValueError("expected unique class names")
        if self.refiner is not None and self.selector is None:
            raise ValueError("expected a selector beside the refiner")
        if self.refiner and "features" in self.refiner.inputs and self.dense.features is None:
            raise ValueError("expected dense.features for a refiner whose inputs name features")
        chosen = self.selector
        if chosen and chosen.kind == "entropy" and chosen.threshold_nats > math.log(len(names)):
            raise ValueError(
                "expected selector.threshold_nats of at most log(classes) = "
                f"{math.log(len(names)):.3f}"
            )
        if chosen and chosen.kind == "magnitude" and self.dense.features is None:
            raise ValueError("expected dense.features for a selector by magnitude")
        return self

    def uses_features(self) -> bool:
        """Whether a stage after the dense model needs its features."""
        by_magnitude = self.selector is not None and self.selector.kind == "magnitude"
        return by_magnitude or (self.refiner is not None and "features" in self.refiner.inputs)

    def uses_truth(self) -> bool:
        """Whether an oracle looks at the labels, so that only labelled pictures can be run."""
        oracle = self.selector is not None and self.selector.kind == "oracle"
        return oracle or (self.refiner is not None and self.refiner.ensembler == "oracle")

    def refiner_inputs(self) -> dict[str, int]:
        """What the refiner sees of a pixel, in order, and how many features each is."""
        widths = {"rgb": 3, "logits": len(self.classes)}
        if self.dense.features is not None:
            widths["features"] = self.dense.features.channels
        return {name: widths[name] for name in self.refiner.inputs} if self.refiner else {}

    def refiner_channels(self) -> int:
        """Number of features per pixel that the refiner sees; 0 without a refiner."""
        return sum(self.refiner_inputs().values())

    def files(self) -> tuple[FileSpec, ...]:
        """Every file besides `bundle.yaml`."""
        learnt = [self.selector.file] if isinstance(self.selector, LearnableSelectorSpec) else []
        return (self.dense.file, *learnt, *([self.refiner.file] if self.refiner else []))
