# SPDX-License-Identifier: Apache-2.0
"""The bundle: the one folder a user deploys.

`bundle.yaml` describes the classes, the dense model (ONNX), the selector, the optional refiner and
ensembler (safetensors), and holds the SHA-256 of each file. Everything that opens a model opens a
bundle. A bundle without a refiner is a plain dense segmenter.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from sparserefine_ros.configuration import Record, read_yaml, write_yaml
from sparserefine_ros.errors import BundleError
from sparserefine_ros.image import ChannelOrder, Normalisation

BUNDLE_FILE: Final = "bundle.yaml"
FORMAT: Final = 1
UNSEALED: Final = "0" * 64

InputFeature = Literal["rgb", "logits", "features"]
PlanBounds = Literal["image", "data"]
EnsemblerKind = Literal["gated", "entropy", "direct"]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Byte = Annotated[int, Field(ge=0, le=255)]
Triple = tuple[float, float, float]
PositiveTriple = tuple[PositiveFloat, PositiveFloat, PositiveFloat]

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

    size: tuple[PositiveInt, PositiveInt] | None = None
    scale: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    multiple_of: PositiveInt = 1
    name: str | None = None
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channel_order: ChannelOrder = "RGB"
    mean: Triple = IMAGENET_MEAN
    std: PositiveTriple = IMAGENET_STD

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
    stride: PositiveInt = 1
    layout: Literal["NCHW", "NHWC"] = "NCHW"


class DenseFeaturesSpec(Record):
    """A second output of the dense model: the features its classifier sees.

    Attributes:
        name: graph output.
        channels: F.
        layout: NCHW or NHWC; the size is the output's own.
    """

    name: str
    channels: PositiveInt
    layout: Literal["NCHW", "NHWC"] = "NCHW"


class DenseSpec(Record):
    """The dense model: an ONNX file, its input, its output, and its features where it has them."""

    file: FileSpec
    input: DenseInput
    output: DenseOutputSpec = DenseOutputSpec()
    features: DenseFeaturesSpec | None = None


class SelectorSpec(Record):
    """Which pixels are refined.

    Attributes:
        kind: entropy of the dense result.
        threshold_nats: pixels above it are refined.
        max_pixels: pixel budget at full resolution; 0 for no limit.
    """

    kind: Literal["entropy"] = "entropy"
    threshold_nats: Annotated[float, Field(ge=0.0)]
    max_pixels: Annotated[int, Field(ge=0)] = 0


class RefinerSpec(Record):
    """The sparse UNet with its head; the ensembler's weights are in the same file.

    Attributes:
        file: safetensors file.
        kind: network family.
        widths: channels per level, finest first.
        blocks: residual blocks on each side of a level.
        inputs: features per pixel, concatenated in this order.
        bounds: trailing rows and columns of strided convolutions follow the image or, as the
            reference release does, the active data.
        channel_order: order of the picture's channels in the features.
        mean, std: on the 0-255 scale, in that order.
        ensembler: how refined and dense logits are fused.
    """

    file: FileSpec
    kind: Literal["unet"] = "unet"
    widths: tuple[PositiveInt, ...] = Field(min_length=1)
    blocks: PositiveInt = 2
    inputs: tuple[InputFeature, ...] = Field(default=("rgb",), min_length=1)
    bounds: PlanBounds = "image"
    channel_order: ChannelOrder = "RGB"
    mean: Triple = IMAGENET_MEAN
    std: PositiveTriple = IMAGENET_STD
    ensembler: EnsemblerKind = "gated"

    @property
    def normalisation(self) -> Normalisation:
        """Channel order and statistics."""
        return Normalisation(self.channel_order, self.mean, self.std)


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
        if self.selector and self.selector.threshold_nats > math.log(len(names)):
            raise ValueError(
                "expected selector.threshold_nats of at most log(classes) = "
                f"{math.log(len(names)):.3f}"
            )
        return self

    def uses_features(self) -> bool:
        """Whether a stage after the dense model needs its features."""
        return self.refiner is not None and "features" in self.refiner.inputs

    def refiner_channels(self) -> int:
        """Number of features per pixel that the refiner sees; 0 without a refiner."""
        widths = {"rgb": 3, "logits": len(self.classes)}
        if self.dense.features is not None:
            widths["features"] = self.dense.features.channels
        return sum(widths[name] for name in self.refiner.inputs) if self.refiner else 0

    def files(self) -> tuple[FileSpec, ...]:
        """Every file besides `bundle.yaml`."""
        return (self.dense.file, *([self.refiner.file] if self.refiner else []))


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle.

    Attributes:
        folder: where it lies.
        spec: content of `bundle.yaml`.
        digest: SHA-256 of `bundle.yaml`, hex; it covers the other files through their digests.
    """

    folder: Path
    spec: BundleSpec
    digest: str

    @classmethod
    def open(cls, folder: Path | str) -> Bundle:
        """Open a bundle and verify every file.

        Raises:
            BundleError: no such bundle, unknown or wrong fields, a missing or changed file.
        """
        folder = Path(folder).expanduser()
        path = folder / BUNDLE_FILE
        if not path.is_file():
            raise BundleError(
                f"expected a bundle folder with {BUNDLE_FILE}, found none at {folder}; "
                "give the folder that `sparserefine bundle create` or `sparserefine train` wrote"
            )
        spec = read_yaml(path, BundleSpec, BundleError)
        for file in spec.files():
            _verify(folder / file.path, file.sha256)
        return cls(folder, spec, sha256_of(path))

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return self.spec.name

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Class names in label order."""
        return tuple(entry.name for entry in self.spec.classes)

    @cached_property
    def palette(self) -> NDArray[np.uint8]:
        """uint8 [256, 3] RGB colour of each label; ids without a class are black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self.spec.classes)] = [entry.colour for entry in self.spec.classes]
        return palette

    def path(self, file: FileSpec) -> Path:
        """Where a file of the bundle lies."""
        return self.folder / file.path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _verify(path: Path, expected: str) -> None:
    if not path.is_file():
        raise BundleError(f"expected the file {path} named in {BUNDLE_FILE}; restore it")
    found = sha256_of(path)
    if expected == UNSEALED:
        raise BundleError(
            f"{path}: {BUNDLE_FILE} holds no SHA-256 of it; "
            f"run: sparserefine bundle seal {path.parent}"
        )
    if found != expected:
        raise BundleError(
            f"{path}: expected SHA-256 {expected}, got {found}: the file changed or was not copied "
            "whole; copy it again, or run `sparserefine bundle seal` if you changed it on purpose"
        )


def create_bundle(folder: Path, spec: BundleSpec, sources: Mapping[str, Path]) -> Bundle:
    """Write a bundle folder whole or not at all, and open it.

    Args:
        folder: where the bundle shall lie; an existing bundle there is replaced.
        spec: content of `bundle.yaml`; the digests are replaced by those of `sources`.
        sources: for each file name in `spec`, the file to copy.

    Raises:
        BundleError: a source is missing, or `folder` holds something else than a bundle.
    """
    if folder.exists() and not (folder / BUNDLE_FILE).is_file():
        raise BundleError(
            f"expected {folder} to be a bundle or not to exist; choose another folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / folder.name
        new.mkdir()
        for file in spec.files():
            source = sources.get(file.path)
            if source is None or not source.is_file():
                raise BundleError(
                    f"expected a file for {file.path!r}, got {source}; train or export it"
                )
            shutil.copyfile(source, new / file.path)
        write_yaml(new / BUNDLE_FILE, sealed(spec, new), heading=f"Model bundle {spec.name}")
        Bundle.open(new)
        _replace(folder, new, Path(scratch) / "replaced")
    return Bundle.open(folder)


def _replace(folder: Path, new: Path, replaced: Path) -> None:
    """Put `new` in the place of `folder`, which goes to `replaced`, or comes back on failure."""
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(replaced)
    try:
        new.rename(folder)
    except OSError:
        replaced.rename(folder)
        raise


def sealed(spec: BundleSpec, folder: Path) -> BundleSpec:
    """Return `spec` with the digests of the files as they lie in `folder`.

    Raises:
        BundleError: a file is missing.
    """
    updates: dict[str, Record] = {}
    for part in ("dense", "refiner"):
        section = getattr(spec, part)
        if section is None:
            continue
        path = folder / section.file.path
        if not path.is_file():
            raise BundleError(f"expected the file {path} named in {BUNDLE_FILE}; restore it")
        file = section.file.model_copy(update={"sha256": sha256_of(path)})
        updates[part] = section.model_copy(update={"file": file})
    return spec.model_copy(update=updates)


def seal_bundle(folder: Path) -> Bundle:
    """Write the digests of a hand-made or changed bundle's files into its `bundle.yaml`.

    Raises:
        BundleError: as `Bundle.open`, but for the digests.
    """
    path = folder / BUNDLE_FILE
    spec = sealed(read_yaml(path, BundleSpec, BundleError), folder)
    aside = path.with_suffix(".tmp")
    write_yaml(aside, spec, heading=f"Model bundle {spec.name}")
    aside.replace(path)
    return Bundle.open(folder)
