# SPDX-License-Identifier: Apache-2.0
"""Dense models in ONNX Runtime on the CPU.

Shape legend: h, w low resolution; s output stride; C classes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.bundle_spec import DenseFeaturesSpec, DenseInput
from sparserefine_ros.errors import BackendError, BundleError, ModelOutputError
from sparserefine_ros.image import Normaliser
from sparserefine_ros.records import DenseOutput

if TYPE_CHECKING:
    import onnxruntime

# How protobuf writes the entry {key: "location", value: FILE} of a tensor's external_data.
_EXTERNAL_DATA: Final = re.compile(rb"\x0a\x08location\x12.([^\x00-\x1f]+)", re.DOTALL)

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def open_segmenter(bundle: Bundle, *, threads: int) -> OnnxRuntimeSegmenter:
    """Load the dense model of a bundle.

    Raises:
        BackendError: ONNX Runtime is not installed, or refuses the model.
        BundleError: the model contradicts the bundle.
    """
    try:
        import onnxruntime
    except ImportError as err:
        raise BackendError(
            "backend onnxruntime is not installed; run: pip install onnxruntime"
        ) from err
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The refiner's threads run right after; spinning engine threads would take their cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = bundle.path(bundle.spec.dense.file)
    _refuse_second_file(path)
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as err:  # the engine raises bare subclasses of Exception
        raise BackendError(f"ONNX Runtime refuses {path}: {err}") from err
    return OnnxRuntimeSegmenter(bundle, session, threads=threads)


def _refuse_second_file(path: Path) -> None:
    """Weights outside the model file would escape the bundle's SHA-256.

    Raises:
        BundleError: the model names such a file.
    """
    match = _EXTERNAL_DATA.search(path.read_bytes())
    if match:
        raise BundleError(
            f"{path}: expected an ONNX model in one file, its weights lie in "
            f"{match[1].decode(errors='replace')!r}; save it whole: "
            "onnx.save(onnx.load(path), path, save_as_external_data=False)"
        )


class OnnxRuntimeSegmenter:
    """See `sparserefine_ros.dense.segmenter.Segmenter`."""

    def __init__(
        self, bundle: Bundle, session: onnxruntime.InferenceSession, *, threads: int
    ) -> None:
        self._session = session
        self._spec = bundle.spec.dense
        self._classes = len(bundle.spec.classes)
        self._normaliser = Normaliser(self._spec.input.normalisation)
        graph_input = _named(session.get_inputs(), self._spec.input.name, "input", bundle)
        graph_output = _named(session.get_outputs(), self._spec.output.name, "output", bundle)
        self._input_name, self._outputs = graph_input.name, [graph_output.name]
        self._features = self._spec.features if bundle.spec.uses_features() else None
        if self._features is not None:
            found = _named(session.get_outputs(), self._features.name, "features", bundle)
            _check_features_shape(found.shape, self._features, bundle)
            self._outputs.append(found.name)
        if graph_input.type not in _DTYPES:
            raise BundleError(
                f"{bundle.name}: expected a dense model with float32 or float16 input, "
                f"got {graph_input.type}; export it with a float input"
            )
        self._dtype = _DTYPES[graph_input.type]
        _check_input_shape(graph_input.shape, self._spec.input, bundle)
        self._check_classes(graph_output.shape, bundle)
        self.description = f"onnxruntime CPU, {threads} threads"

    def _check_classes(self, shape: list[Any], bundle: Bundle) -> None:
        channel_axis = 1 if self._spec.output.layout == "NCHW" else 3
        channels = shape[channel_axis] if len(shape) == 4 else None
        if len(shape) != 4 or (isinstance(channels, int) and channels != self._classes):
            raise BundleError(
                f"{bundle.name}: expected a dense model with 4-D output and {self._classes} "
                f"channels ({self._spec.output.layout}), got {shape}; "
                "correct classes or output.layout"
            )

    def __call__(self, low_res_image: NDArray[np.uint8]) -> DenseOutput:
        """Segment uint8 [h, w, 3] RGB, returning logits float32 [C, h, w].

        Raises:
            ModelOutputError: the model failed or returned NaN, infinity or the wrong shape.
        """
        network_input = self._normaliser.image_to_nchw(low_res_image)
        if self._spec.input.layout == "NHWC":
            network_input = np.ascontiguousarray(network_input.transpose(0, 2, 3, 1))
        network_input = network_input.astype(self._dtype, copy=False)
        try:
            raw, *others = self._session.run(self._outputs, {self._input_name: network_input})
        except Exception as err:  # the engine raises bare subclasses of Exception
            raise ModelOutputError(f"the dense model failed: {err}") from err
        height, width = low_res_image.shape[:2]
        logits = torch.from_numpy(self._logits(np.asarray(raw), (height, width)))
        if self._features is None:
            return DenseOutput(logits)
        return DenseOutput(logits, _feature_maps(np.asarray(others[0]), self._features))

    def _logits(self, raw: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
        output = self._spec.output
        if output.layout == "NHWC" and raw.ndim == 4:
            raw = raw.transpose(0, 3, 1, 2)
        if raw.ndim != 4 or raw.shape[:2] != (1, self._classes):
            raise ModelOutputError(
                f"expected dense output [1, {self._classes}, h / {output.stride}, "
                f"w / {output.stride}] ({output.layout}), got {list(raw.shape)}; "
                "correct the classes or output section of bundle.yaml"
            )
        for side, full in zip(raw.shape[2:], size, strict=True):
            if side not in (full // output.stride, -(-full // output.stride)):
                raise ModelOutputError(
                    f"expected dense output of {size[0]} x {size[1]} / {output.stride}, got "
                    f"{raw.shape[2]} x {raw.shape[3]}; correct output.stride in bundle.yaml"
                )
        maps = np.ascontiguousarray(raw[0], dtype=np.float32)
        if not np.isfinite(maps).all():
            raise ModelOutputError("the dense model returned NaN or infinity; check its weights")
        maps = _resize_maps(maps, size)
        if output.kind == "probabilities":
            np.log(np.clip(maps, 1e-10, None, out=maps), out=maps)
        return maps


def _check_features_shape(shape: list[Any], spec: DenseFeaturesSpec, bundle: Bundle) -> None:
    channels = shape[1 if spec.layout == "NCHW" else 3] if len(shape) == 4 else None
    if len(shape) != 4 or (isinstance(channels, int) and channels != spec.channels):
        raise BundleError(
            f"{bundle.name}: expected 4-D features with {spec.channels} channels "
            f"({spec.layout}), got {shape}; correct dense.features"
        )


def _feature_maps(raw: NDArray[Any], spec: DenseFeaturesSpec) -> torch.Tensor:
    """One picture's features as float32 [F, h', w']."""
    if spec.layout == "NHWC" and raw.ndim == 4:
        raw = raw.transpose(0, 3, 1, 2)
    if raw.ndim != 4 or raw.shape[:2] != (1, spec.channels) or 0 in raw.shape:
        raise ModelOutputError(
            f"expected dense features [1, {spec.channels}, rows, columns] ({spec.layout}), "
            f"got {list(raw.shape)}; correct dense.features in bundle.yaml"
        )
    maps = np.ascontiguousarray(raw[0], dtype=np.float32)
    if not np.isfinite(maps).all():
        raise ModelOutputError("the dense model returned NaN or infinite features")
    return torch.from_numpy(maps)


def _named(candidates: list[Any], name: str | None, role: str, bundle: Bundle) -> Any:
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


def _resize_maps(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear resize of each channel with aligned pixel areas, [C, h / s, w / s] -> [C, h, w]."""
    if maps.shape[1:] == size:
        return maps
    resized = np.empty((maps.shape[0], *size), np.float32)
    for channel, target in zip(maps, resized, strict=True):
        cv2.resize(channel, (size[1], size[0]), dst=target, interpolation=cv2.INTER_LINEAR)
    return resized
