# SPDX-License-Identifier: Apache-2.0
"""What the bundle says of the dense model, held against the graph and applied to every picture.

Every engine uses it: the checks when a model is loaded, the network input from the pictures, and
logits and features from what the network returns.

Shape legend: B pictures; h, w low resolution; s output stride; C classes; F features.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.bundle_spec import DenseFeaturesSpec, DenseInput
from sparserefine_ros.errors import BundleError, ModelOutputError
from sparserefine_ros.image import Normaliser
from sparserefine_ros.records import DenseOutput

_NOT_FINITE: Final = "the dense model returned NaN or infinity; check its weights"
_LEAST_PROBABILITY: Final = 1e-10
# Of probabilities in half precision, summed up.
_ROUNDING: Final = 1e-2
_INPUT_TYPES: Final = {"float32": np.float32, "float16": np.float16}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of the graph, as an engine describes it.

    Attributes:
        name: its name in the ONNX graph.
        shape: a number for each fixed side, anything else for a free one.
        element: NumPy's name of its type where NumPy has it, else the engine's.
    """

    name: str
    shape: list[Any]
    element: str


class Contract:
    """The bundle's description of the dense model, checked against a graph.

    Args:
        bundle: the bundle.
        inputs, outputs: all of the graph.
        max_batch: pictures that it must take at once.

    Attributes:
        input: the graph's input.
        output_names: outputs to ask for, in the order `dense_outputs` takes them.

    Raises:
        BundleError: the model contradicts the bundle, or takes fewer pictures at once.
    """

    def __init__(
        self,
        bundle: Bundle,
        inputs: Sequence[GraphTensor],
        outputs: Sequence[GraphTensor],
        max_batch: int = 1,
    ) -> None:
        self._spec = bundle.spec.dense
        self._classes = len(bundle.spec.classes)
        self._normaliser = Normaliser(self._spec.input.normalisation)
        self.input = _named(inputs, self._spec.input.name, "input", bundle)
        others = [each.name for each in inputs if each.name != self.input.name]
        if others:
            raise BundleError(
                f"{bundle.name}: expected a dense model with the picture as its only input, got "
                f"{', '.join(others)} beside {self.input.name}; export it with these as constants"
            )
        logits = _named(outputs, self._spec.output.name, "output", bundle)
        self.output_names = [logits.name]
        self._features = self._spec.features if bundle.spec.uses_features() else None
        if self._features is not None:
            found = _named(outputs, self._features.name, "features", bundle)
            _check_features_shape(found.shape, self._features, bundle)
            self.output_names.append(found.name)
        if self.input.element not in _INPUT_TYPES:
            raise BundleError(
                f"{bundle.name}: expected a dense model with float32 or float16 input, "
                f"got {self.input.element}; export it with a float input"
            )
        self._dtype = _INPUT_TYPES[self.input.element]
        _check_input_shape(self.input.shape, self._spec.input, bundle)
        _check_batch(self.input.shape[0], max_batch, bundle)
        self._check_classes(logits, bundle)
        self._looked = False
        if max(self._spec.input.std) < 1.0:
            _log.warning(
                "expected dense.input.std on the 0-255 scale, got %s, which looks like the 0-1 "
                "scale; multiply mean and std by 255", list(self._spec.input.std),
            )  # fmt: skip

    def _check_classes(self, logits: GraphTensor, bundle: Bundle) -> None:
        shape = logits.shape
        if "int" in logits.element:
            raise BundleError(
                f"{bundle.name}: expected a dense model that returns a score for each class, got "
                f"{logits.element} {shape}, as of class numbers; export it before its argmax"
            )
        channel_axis = 1 if self._spec.output.layout == "NCHW" else 3
        channels = shape[channel_axis] if len(shape) == 4 else None
        if len(shape) != 4 or (isinstance(channels, int) and channels != self._classes):
            raise BundleError(
                f"{bundle.name}: expected a dense model with 4-D output and {self._classes} "
                f"channels ({self._spec.output.layout}), got {shape}; "
                "correct classes or output.layout"
            )

    def network_input(self, low_res_images: Sequence[NDArray[np.uint8]]) -> NDArray[Any]:
        """Normalise uint8 [h, w, 3] RGB to [B, 3, h, w] or [B, h, w, 3] of the graph's type."""
        values = self._normaliser.images_to_nchw(low_res_images)
        if self._spec.input.layout == "NHWC":
            values = np.ascontiguousarray(values.transpose(0, 2, 3, 1))
        return values.astype(self._dtype, copy=False)

    def failure(self, err: Exception) -> ModelOutputError:
        """What to raise when the engine fails on a picture."""
        taken = self._spec.input
        free = taken.size is None and taken.multiple_of == 1
        advice = "; if it takes no such size, set dense.input.multiple_of in bundle.yaml"
        return ModelOutputError(f"the dense model failed: {err}{advice if free else ''}")

    def dense_outputs(
        self, raw: Sequence[NDArray[Any]], images: Sequence[NDArray[np.uint8]]
    ) -> list[DenseOutput]:
        """Logits, and features where they are used, of each picture.

        Args:
            raw: what the network returned for `output_names`, any float type.
            images: the pictures it saw, uint8 [h, w, 3] each.

        Raises:
            ModelOutputError: NaN, infinity, the wrong shape, or logits for probabilities.
        """
        size = _size_of(images)
        output, parts = self._spec.output, self._planes(raw, len(images), size)
        found = [[np.ascontiguousarray(maps, np.float32) for maps in part] for part in parts]
        if not all(np.isfinite(maps).all() for part in found for maps in part):
            raise ModelOutputError(_NOT_FINITE)
        self._look_at_kind(torch.from_numpy(found[0][0]))
        for index, maps in enumerate(found[0]):
            logits = found[0][index] = _resize_maps(maps, size)
            if output.kind == "probabilities":
                np.log(np.clip(logits, _LEAST_PROBABILITY, None, out=logits), out=logits)
        return [DenseOutput(*map(torch.from_numpy, each)) for each in zip(*found, strict=True)]

    def device_outputs(
        self, raw: Sequence[Tensor], images: Sequence[NDArray[np.uint8]]
    ) -> list[DenseOutput]:
        """`dense_outputs` of what lies on a GPU, which stays there."""
        size = _size_of(images)
        found = [part.float() for part in self._planes(raw, len(images), size)]
        if not torch.stack([maps.isfinite().all() for maps in found]).all():
            raise ModelOutputError(_NOT_FINITE)
        self._look_at_kind(found[0][0])
        if found[0].shape[2:] != size:
            found[0] = F.interpolate(found[0], size, mode="bilinear", align_corners=False)
        if self._spec.output.kind == "probabilities":
            found[0] = found[0].clamp_min(_LEAST_PROBABILITY).log()
        found = [maps.contiguous() for maps in found]
        return [DenseOutput(*each) for each in zip(*found, strict=True)]

    def _look_at_kind(self, values: Tensor) -> None:
        """See that values [C, h / s, w / s] are of the bundle's kind; those of one picture tell."""
        if self._looked:
            return
        least = float(values.amin())
        sums_to_one = bool((values.sum(0) - 1.0).abs().amax() < _ROUNDING)
        # Probabilities that the model enlarged by cubic interpolation go below zero, and their sum
        # stays one.
        if self._spec.output.kind == "probabilities" and least < -_ROUNDING and not sums_to_one:
            raise ModelOutputError(
                f"expected probabilities from the dense model, got {least:.3g}; "
                "set dense.output.kind: logits in bundle.yaml"
            )
        if self._spec.output.kind == "logits" and least >= -_ROUNDING and sums_to_one:
            _log.warning(
                "expected logits from the dense model, got values that look like probabilities: "
                "the entropy of such logits is wrong; set dense.output.kind: probabilities in "
                "bundle.yaml"
            )
        self._looked = True

    def _planes(self, raw: Sequence[Any], batch: int, size: tuple[int, int]) -> list[Any]:
        """What the network returned as [B, C, h / s, w / s] and [B, F, h', w'], shapes checked."""
        logits = _to_nchw(raw[0], self._spec.output.layout)
        self._check_logits(logits.shape, batch, size)
        if self._features is None:
            return [logits]
        features = _to_nchw(raw[1], self._features.layout)
        _check_feature_maps(features.shape, batch, self._features)
        return [logits, features]

    def _check_logits(self, shape: Sequence[int], batch: int, size: tuple[int, int]) -> None:
        """Check the shape of an output that was brought to NCHW."""
        output = self._spec.output
        other = "NHWC" if output.layout == "NCHW" else "NCHW"
        if len(shape) != 4 or tuple(shape[:2]) != (batch, self._classes):
            raise ModelOutputError(
                f"expected dense output [{batch}, {self._classes}, h / {output.stride}, "
                f"w / {output.stride}] ({output.layout}), got {list(shape)}; "
                + (
                    f"this looks like {other}: set dense.output.layout: {other} in bundle.yaml"
                    if len(shape) == 4 and self._classes in shape[2:]
                    else "correct the classes or output section of bundle.yaml"
                )
            )
        for side, full in zip(shape[2:], size, strict=True):
            if side not in (full // output.stride, -(-full // output.stride)):
                raise ModelOutputError(
                    f"expected dense output of {size[0]} x {size[1]} / {output.stride}, got "
                    f"{shape[2]} x {shape[3]}; correct output.stride in bundle.yaml"
                )


def network_shape(
    spec: DenseInput, size: tuple[int, int], batch: int = 1
) -> tuple[int, int, int, int]:
    """Shape of the network input for low-resolution pictures of (h, w)."""
    return (batch, 3, *size) if spec.layout == "NCHW" else (batch, *size, 3)


def _check_features_shape(shape: list[Any], spec: DenseFeaturesSpec, bundle: Bundle) -> None:
    channels = shape[1 if spec.layout == "NCHW" else 3] if len(shape) == 4 else None
    if len(shape) != 4 or (isinstance(channels, int) and channels != spec.channels):
        raise BundleError(
            f"{bundle.name}: expected 4-D features with {spec.channels} channels "
            f"({spec.layout}), got {shape}; correct dense.features"
        )


def _size_of(images: Sequence[NDArray[np.uint8]]) -> tuple[int, int]:
    return images[0].shape[0], images[0].shape[1]


def _to_nchw(raw: Any, layout: str) -> Any:
    """An array or a tensor of that layout; one that lacks an axis as it is."""
    if layout == "NCHW" or raw.ndim != 4:
        return raw
    return raw.permute(0, 3, 1, 2) if isinstance(raw, Tensor) else raw.transpose(0, 3, 1, 2)


def _check_feature_maps(shape: Sequence[int], batch: int, spec: DenseFeaturesSpec) -> None:
    if len(shape) != 4 or tuple(shape[:2]) != (batch, spec.channels) or 0 in shape:
        raise ModelOutputError(
            f"expected dense features [{batch}, {spec.channels}, rows, columns] ({spec.layout}), "
            f"got {list(shape)}; correct dense.features in bundle.yaml"
        )


def _named(
    candidates: Sequence[GraphTensor], name: str | None, role: str, bundle: Bundle
) -> GraphTensor:
    names = [candidate.name for candidate in candidates]
    if name is None and len(candidates) == 1:
        return candidates[0]
    if name not in names:
        raise BundleError(
            f"{bundle.name}: expected dense.{role}.name to be one of {names}, got {name!r}"
        )
    return candidates[names.index(name)]


def _check_input_shape(shape: list[Any], spec: DenseInput, bundle: Bundle) -> None:
    channels, sides = (1, slice(2, 4)) if spec.layout == "NCHW" else (3, slice(1, 3))
    # With sides that are free, a number 3 in a side's place betrays the other layout.
    swapped = len(shape) == 4 and shape[4 - channels] == 3 and shape[channels] != 3
    if len(shape) != 4 or swapped or (isinstance(shape[channels], int) and shape[channels] != 3):
        raise BundleError(
            f"{bundle.name}: expected a dense model with a 4-D input of 3 channels "
            f"({spec.layout}), got {shape}; correct dense.input.layout"
        )
    wanted = spec.size or (None, None)
    if any(
        isinstance(side, int) and side != size
        for side, size in zip(shape[sides], wanted, strict=True)
    ):
        raise BundleError(
            f"{bundle.name}: the dense model takes {shape[sides]} only, but bundle.yaml asks for "
            f"{'scale ' + str(spec.scale) if spec.size is None else list(spec.size)}; "
            f"set dense.input.size: {shape[sides]}"
        )


def _check_batch(axis: Any, max_batch: int, bundle: Bundle) -> None:
    if isinstance(axis, int) and (axis != 1 or max_batch > 1):
        raise BundleError(
            f"{bundle.name}: expected a dense model whose input takes any number of pictures "
            f"(or one, for max_batch 1), got a batch axis of {axis} for max_batch {max_batch}; "
            "export it with a free batch axis" + (", or set max_batch to 1" if axis == 1 else "")
        )


def _resize_maps(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear resize of each channel with aligned pixel areas, [C, h / s, w / s] -> [C, h, w]."""
    if maps.shape[1:] == size:
        return maps
    resized = np.empty((maps.shape[0], *size), np.float32)
    for channel, target in zip(maps, resized, strict=True):
        cv2.resize(channel, (size[1], size[0]), dst=target, interpolation=cv2.INTER_LINEAR)
    return resized
