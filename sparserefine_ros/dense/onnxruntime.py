# SPDX-License-Identifier: Apache-2.0
"""Dense models in ONNX Runtime, on the CPU or by its CUDA provider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.contract import Contract, GraphTensor
from sparserefine_ros.dense.devices import device_kind, require_gpu
from sparserefine_ros.dense.onnx_file import dense_model_file
from sparserefine_ros.dense.options import DenseOptions, Report
from sparserefine_ros.errors import BackendError, ModelOutputError
from sparserefine_ros.records import DenseOutput

if TYPE_CHECKING:
    import onnxruntime

CUDA_PROVIDER: Final = "CUDAExecutionProvider"
_CPU_PROVIDER: Final = "CPUExecutionProvider"
_ELEMENTS: Final = {"tensor(float)": "float32", "tensor(float16)": "float16"}


def open_segmenter(bundle: Bundle, how: DenseOptions, report: Report) -> OnnxRuntimeSegmenter:
    """Load the dense model of a bundle.

    Raises:
        BackendError: ONNX Runtime or its CUDA provider is not installed, there is no such GPU, or
            it refuses the model.
        BundleError: the model contradicts the bundle.
    """
    try:
        import onnxruntime
    except ImportError as err:
        raise BackendError(
            "backend onnxruntime is not installed; run: pip install onnxruntime"
        ) from err
    providers = _providers(how.device, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = how.threads
    options.log_severity_level = 3
    # The refiner's threads run right after; spinning engine threads would take their cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = dense_model_file(bundle)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as err:  # the engine raises bare subclasses of Exception
        raise BackendError(f"ONNX Runtime refuses {path}: {err}") from err
    # It falls back to the CPU in silence where the provider's libraries do not load.
    if device_kind(how.device) == "cuda" and CUDA_PROVIDER not in session.get_providers():
        raise BackendError(
            f"ONNX Runtime could not start its {CUDA_PROVIDER}, see its log; install the CUDA and "
            "cuDNN versions it asks for: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return OnnxRuntimeSegmenter(bundle, session, how)


def _providers(device: str, available: Sequence[str]) -> list[Any]:
    """What ONNX Runtime shall run the model on, best first."""
    if device_kind(device) == "cpu":
        return [_CPU_PROVIDER]
    if CUDA_PROVIDER not in available:
        raise BackendError(
            f"expected an ONNX Runtime with {CUDA_PROVIDER} for device {device}, this one has "
            f"{', '.join(available)}; run: pip uninstall onnxruntime && pip install onnxruntime-gpu"
        )
    gpu = require_gpu(device, "backend onnxruntime")
    return [(CUDA_PROVIDER, {"device_id": gpu.index}), _CPU_PROVIDER]


class OnnxRuntimeSegmenter:
    """See `sparserefine_ros.dense.segmenter.Segmenter`."""

    def __init__(
        self, bundle: Bundle, session: onnxruntime.InferenceSession, how: DenseOptions
    ) -> None:
        self._session = session
        self._contract = Contract(
            bundle, _tensors(session.get_inputs()), _tensors(session.get_outputs())
        )
        if device_kind(how.device) == "cpu":
            self.description = f"onnxruntime CPU, {how.threads} threads"
        else:
            self.description = f"onnxruntime CUDA, {how.device}"

    def __call__(self, low_res_image: NDArray[np.uint8]) -> DenseOutput:
        """Segment uint8 [h, w, 3] RGB, returning logits float32 [C, h, w].

        Raises:
            ModelOutputError: the model failed or returned NaN, infinity or the wrong shape.
        """
        contract = self._contract
        feed = {contract.input.name: contract.network_input(low_res_image)}
        try:
            raw = self._session.run(contract.output_names, feed)
        except Exception as err:  # the engine raises bare subclasses of Exception
            raise ModelOutputError(f"the dense model failed: {err}") from err
        height, width = low_res_image.shape[:2]
        return contract.dense_output([np.asarray(values) for values in raw], (height, width))


def _tensors(nodes: Sequence[Any]) -> list[GraphTensor]:
    return [
        GraphTensor(node.name, list(node.shape), _ELEMENTS.get(node.type, node.type))
        for node in nodes
    ]
