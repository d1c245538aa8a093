# SPDX-License-Identifier: Apache-2.0
"""Dense models in ONNX Runtime: on the CPU, or by its CUDA and TensorRT providers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.contract import Contract, GraphTensor
from sparserefine_ros.dense.devices import device_kind
from sparserefine_ros.dense.half import to_half
from sparserefine_ros.dense.onnx_file import dense_model_file
from sparserefine_ros.dense.onnx_providers import CPU_PROVIDER, Providers, choose_providers
from sparserefine_ros.dense.options import DenseOptions, Progress, Report
from sparserefine_ros.errors import BackendError
from sparserefine_ros.records import DenseOutput

if TYPE_CHECKING:
    import onnxruntime

_ELEMENTS: Final = {"tensor(float)": "float32", "tensor(float16)": "float16"}


def open_segmenter(bundle: Bundle, how: DenseOptions, report: Report) -> OnnxRuntimeSegmenter:
    """Load the dense model of a bundle.

    Raises:
        BackendError: ONNX Runtime or its provider is not installed, there is no such GPU, or it
            refuses the model.
        BundleError: the model contradicts the bundle.
    """
    try:
        import onnxruntime
    except ImportError as err:
        raise BackendError(
            "backend onnxruntime is not installed; run: pip install onnxruntime"
        ) from err
    path = dense_model_file(bundle)

    def input_name() -> str:
        """What contradicts the bundle is found before an engine is built."""
        return OnnxRuntimeSegmenter(bundle, _session(path, [(CPU_PROVIDER, {})], 1), how).input_name

    available = onnxruntime.get_available_providers()
    providers = choose_providers(bundle, how, available, input_name)
    named = providers[0][0]
    if named != CPU_PROVIDER:
        report(Progress(f"loading the dense model, {named}"))
    model = to_half(path) if how.engine.precision == "fp16" else path
    session = _session(model, providers, how.threads)
    # It falls back to the CPU in silence where the libraries of a provider do not load.
    missing = {name for name, _ in providers} - set(session.get_providers())
    if missing:
        raise BackendError(
            f"ONNX Runtime could not start its {' and '.join(sorted(missing))}, see its log; "
            "install the libraries it asks for; CUDA and cuDNN: "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return OnnxRuntimeSegmenter(bundle, session, how)


def _session(
    model: Path | bytes, providers: Providers, threads: int
) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The refiner's threads run right after; spinning engine threads would take their cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    whole = model if isinstance(model, bytes) else str(model)
    try:
        # Of itself it would go on with other providers, without their options, where one fails.
        session = onnxruntime.InferenceSession(
            whole, options, providers=providers, enable_fallback=0
        )
        session.disable_fallback()
        return session
    except Exception as err:  # the engine raises bare subclasses of Exception
        what = "the model in half precision" if isinstance(model, bytes) else model
        raise BackendError(f"ONNX Runtime refuses {what}: {err}") from err


class OnnxRuntimeSegmenter:
    """See `sparserefine_ros.dense.segmenter.Segmenter`."""

    def __init__(
        self, bundle: Bundle, session: onnxruntime.InferenceSession, how: DenseOptions
    ) -> None:
        self._session = session
        self._contract = Contract(
            bundle,
            _tensors(session.get_inputs()),
            _tensors(session.get_outputs()),
            how.engine.max_batch,
        )
        if device_kind(how.device) == "cpu":
            self.description = f"onnxruntime CPU, {how.threads} threads"
        else:
            provider = session.get_providers()[0].removesuffix("ExecutionProvider")
            self.description = f"onnxruntime {provider} {how.engine.precision}, {how.device}"

    @property
    def input_name(self) -> str:
        """Name of the graph's input."""
        return self._contract.input.name

    def __call__(self, low_res_images: Sequence[NDArray[np.uint8]]) -> list[DenseOutput]:
        """Segment pictures of one size, uint8 [h, w, 3] RGB each, to logits float32 [C, h, w].

        Raises:
            ModelOutputError: the model failed or returned NaN, infinity or the wrong shape.
        """
        contract = self._contract
        feed = {contract.input.name: contract.network_input(low_res_images)}
        try:
            raw = self._session.run(contract.output_names, feed)
        except Exception as err:  # the engine raises bare subclasses of Exception
            raise contract.failure(err) from err
        return contract.dense_outputs([np.asarray(values) for values in raw], low_res_images)


def _tensors(nodes: Sequence[Any]) -> list[GraphTensor]:
    return [
        GraphTensor(node.name, list(node.shape), _ELEMENTS.get(node.type, node.type))
        for node in nodes
    ]
