# SPDX-License-Identifier: Apache-2.0
"""A dense network as a bundle: ONNX, checked against the network, and its description.

Shape legend: C classes; h, w input size; s output stride.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from sparserefine_ros.bundle import Bundle, check_bundle_folder, create_bundle
from sparserefine_ros.bundle_spec import (
    BundleSpec,
    ClassSpec,
    DenseFeaturesSpec,
    DenseInput,
    DenseOutputSpec,
    DenseSpec,
    FileSpec,
)
from sparserefine_ros.errors import BackendError, BundleError, ConfigurationError
from sparserefine_ros.zoo.export import Precision, export_onnx, pin_input_size
from sparserefine_ros.zoo.ladder import LadderNet
from sparserefine_ros.zoo.network import DenseNetwork

DENSE_FILE: Final = "dense.onnx"

# A small picture takes the same paths through a network as a large one.
_EXAMPLE_SIZE: Final = (192, 256)
# Largest difference over the largest value: sums in another order, or in half precision.
_LARGEST_ERROR: Final[dict[Precision, float]] = {"fp32": 1e-3, "fp16": 3e-2}


@dataclass(frozen=True)
class ExportOptions:
    """How a network is exported.

    Attributes:
        scale: low resolution / full resolution, for networks of free size.
        size: (h, w) that the network runs at whatever the picture's size; then `scale` counts for
            nothing.
        precision: of weights, input and output.
    """

    scale: float = 0.5
    size: tuple[int, int] | None = None
    precision: Precision = "fp32"


def export_bundle(
    network: DenseNetwork,
    classes: Sequence[ClassSpec],
    folder: Path,
    options: ExportOptions = ExportOptions(),
    *,
    licence: str,
    origin: str,
) -> Bundle:
    """Write a network as a bundle without a refiner.

    Args:
        network: with its weights; in half precision afterwards if that was asked for.
        classes: C of them, in label order.
        folder: of the bundle; its name is the bundle's.
        options: see there.
        licence: of the weights, in words.
        origin: where the weights come from, for the bundle's record.

    Raises:
        ConfigurationError: the network cannot run so.
        BackendError: the ONNX model's output is not the network's, or a package is missing.
        BundleError: `folder` holds something else than a bundle, or one with a refiner.
    """
    _check(network, options)
    _check_folder(folder)
    stride, kind = network.output_stride, network.output_kind
    size = options.size
    dense = DenseSpec(
        file=FileSpec(path=DENSE_FILE),
        input=DenseInput(
            size=size,
            scale=options.scale if size is None else None,
            multiple_of=network.multiple_of,
            name="image",
            channel_order=network.normalisation.channel_order,
            mean=network.normalisation.mean,
            std=network.normalisation.std,
        ),
        output=DenseOutputSpec(name=kind, kind=kind, stride=stride),
        features=_features_of(network),
    )
    spec = BundleSpec(
        name=folder.resolve().name,
        licence=licence,
        classes=tuple(classes),
        dense=dense,
        training={"dense_weights": origin, "dense_precision": options.precision},
    )
    with tempfile.TemporaryDirectory() as scratch:
        onnx = Path(scratch) / DENSE_FILE
        _export_checked(network, onnx, options)
        return create_bundle(folder, spec, {DENSE_FILE: onnx})


def _check_folder(folder: Path) -> None:
    """What lies there must be no loss."""
    check_bundle_folder(folder)
    if folder.exists() and (there := Bundle.open(folder)).spec.refiner:
        raise BundleError(
            f"expected {folder} to be a bundle without a refiner or not to exist; the refiner of "
            f"{there.name} would be lost: choose another folder"
        )


def _check(network: DenseNetwork, options: ExportOptions) -> None:
    name, step, size = type(network).__name__, network.multiple_of, options.size
    if size is None and not network.free_size:
        raise ConfigurationError(
            f"{name} is exported for one input size; give it: --size HEIGHT WIDTH"
        )
    if size is not None and any(side < step or side % step for side in size):
        raise ConfigurationError(
            f"expected sides that are multiples of {step} for {name}, got {size[0]} x {size[1]}"
        )
    if options.precision == "fp16" and not network.half_precision:
        raise ConfigurationError(f"{name} is exported in fp32 only, got fp16")
    if not 0.0 < options.scale <= 1.0:
        raise ConfigurationError(f"expected a scale above 0, at most 1, got {options.scale}")


def _features_of(network: DenseNetwork) -> DenseFeaturesSpec | None:
    if not isinstance(network, LadderNet):
        return None
    return DenseFeaturesSpec(name="features", channels=network.classifier.in_channels)


def _export_checked(network: DenseNetwork, path: Path, options: ExportOptions) -> None:
    """Export, compare what ONNX Runtime makes of it on two pictures of noise, and fix its size."""
    traced, step = _EXAMPLE_SIZE, network.multiple_of
    compared = (traced[0] + step, traced[1] + 2 * step)
    if options.size is not None and not network.free_size:
        traced = compared = options.size
    image = torch.randn(2, 3, *compared, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network.float().eval()(image)
    export_onnx(
        network,
        path,
        example_size=traced,
        precision=options.precision,
        output=network.output_kind,
    )
    found = _run_onnx(path, image, network.output_kind)
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-9))
    if not error <= _LARGEST_ERROR[options.precision]:
        raise BackendError(
            f"expected ONNX output within {_LARGEST_ERROR[options.precision]} of the network's, "
            f"relative to its largest value, got {error:.1e}; nothing was written"
            f"{'; try fp32' if options.precision == 'fp16' else ''}"
        )
    if options.size is not None:
        pin_input_size(path, options.size)


def _run_onnx(path: Path, image: Tensor, output: str) -> Tensor:
    try:
        import onnxruntime
    except ImportError as err:
        raise BackendError(
            "the exported model is checked with ONNX Runtime; run: pip install onnxruntime"
        ) from err
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        half = session.get_inputs()[0].type == "tensor(float16)"
        given = (image.half() if half else image).numpy()
        (found,) = session.run([output], {"image": given})
    except Exception as err:  # the engine raises bare subclasses of Exception
        raise BackendError(
            f"ONNX Runtime refuses the exported model: {err}; nothing was written"
        ) from err
    return torch.from_numpy(found).float()
