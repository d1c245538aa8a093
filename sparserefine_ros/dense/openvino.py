# SPDX-License-Identifier: Apache-2.0
"""Dense models in OpenVINO on x86 and ARM processors.

It pays for transformers and in bfloat16; `docs/tensorrt.md` tells when to choose which engine.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.contract import Contract, GraphTensor
from sparserefine_ros.dense.onnx_file import dense_model_file
from sparserefine_ros.dense.options import DenseOptions, Report
from sparserefine_ros.errors import BackendError
from sparserefine_ros.records import DenseOutput

_ELEMENTS: Final = {"f32": "float32", "f16": "float16", "i32": "int32", "i64": "int64"}


def open_segmenter(bundle: Bundle, how: DenseOptions, report: Report) -> OpenVinoSegmenter:
    """Load the dense model of a bundle.

    Raises:
        BackendError: OpenVINO is not installed, refuses the model, or the processor cannot compute
            in bfloat16 when asked to.
        BundleError: the model contradicts the bundle.
    """
    path = dense_model_file(bundle)
    half = how.engine.precision == "bf16"
    compiled = compile_for_cpu(path, half=half, threads=how.threads, what="backend openvino")
    return OpenVinoSegmenter(bundle, compiled, how)


def compile_for_cpu(path: Path, *, half: bool, threads: int, what: str) -> Any:
    """OpenVINO's compiled model of an ONNX file.

    Args:
        path: the file.
        half: whether to compute in bfloat16.
        threads: of the engine.
        what: is opened, for messages.

    Raises:
        BackendError: see `require_openvino`, or OpenVINO refuses the model.
    """
    core = require_openvino(what, half=half)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        # Left alone, it computes in bfloat16 where the processor can.
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
    }
    try:
        return core.compile_model(core.read_model(path), "CPU", settings)
    except Exception as err:  # the engine raises RuntimeError and subclasses of its own
        raise BackendError(f"OpenVINO refuses {path}: {err}") from err


def require_openvino(what: str, *, half: bool) -> Any:
    """OpenVINO's `Core`, where it is installed and computes as it shall.

    Args:
        what: needs it, for messages.
        half: whether in bfloat16.

    Raises:
        BackendError: it is not installed, or the processor does not compute in bfloat16.
    """
    try:
        import openvino  # noqa: F401
    except ImportError as err:
        raise BackendError(f"{what} is not installed; run: pip install openvino") from err
    core = _core()
    known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if half and "BF16" not in known:
        raise BackendError(
            f"expected a processor that computes in bfloat16 for {what}, OpenVINO finds "
            f"{', '.join(known)}; choose float32: precision model, or the engine without -bfloat16"
        )
    return core


@functools.cache
def _core() -> Any:
    """The only one of the process, which stays.

    Each sets a stack for signals and puts back what it found when it goes. When the first of two
    goes first, the second puts back memory that is gone: the next signal, such as that of Ctrl-C,
    kills the process (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


class OpenVinoSegmenter:
    """See `sparserefine_ros.dense.segmenter.Segmenter`."""

    def __init__(self, bundle: Bundle, compiled: Any, how: DenseOptions) -> None:
        self._request = compiled.create_infer_request()
        given = bundle.spec.dense
        known = {given.input.name, given.output.name, given.features.name if given.features else ""}
        self._contract = Contract(
            bundle,
            _tensors(compiled.inputs, known),
            _tensors(compiled.outputs, known),
            how.engine.max_batch,
        )
        precision = "bf16" if how.engine.precision == "bf16" else "fp32"
        self.description = f"openvino CPU {precision}, {how.threads} threads"

    def __call__(self, low_res_images: Sequence[NDArray[np.uint8]]) -> list[DenseOutput]:
        """Segment pictures of one size, uint8 [h, w, 3] RGB each, to logits float32 [C, h, w].

        Raises:
            ModelOutputError: the model failed or returned NaN, infinity or the wrong shape.
        """
        contract = self._contract
        network_input = contract.network_input(low_res_images)
        try:
            self._request.infer({contract.input.name: network_input}, share_inputs=True)
            # The request keeps its buffers for the next picture: take copies.
            raw = [self._request.get_tensor(name).data.copy() for name in contract.output_names]
        except Exception as err:  # the engine raises RuntimeError and subclasses of its own
            raise contract.failure(err) from err
        return contract.dense_outputs(raw, low_res_images)


def _tensors(ports: Sequence[Any], known: AbstractSet[str | None]) -> list[GraphTensor]:
    """Inputs or outputs by the names that the bundle knows: each port may have several."""
    found = []
    for port in ports:
        shape = [side.get_length() if side.is_static else "?" for side in port.partial_shape]
        element = port.element_type.get_type_name()
        name = next((name for name in port.names if name in known), port.any_name)
        found.append(GraphTensor(name, shape, _ELEMENTS.get(element, element)))
    return found
