# SPDX-License-Identifier: Apache-2.0
"""An ONNX model converted to half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sparserefine_ros.errors import BackendError

# Nodes that sum over all pixels, which overflows float16: see `zoo.hamburger`.
_OVERFLOWS: Final = "/ham/"
_QUANTISED: Final = {"QuantizeLinear", "DequantizeLinear"}


def to_half(path: Path) -> bytes:
    """The model with float16 weights and arithmetic; its inputs and outputs keep their types.

    ONNX Runtime's converter does it: casts stand at the graph's boundary and around operators that
    have no half-precision form.

    Raises:
        BackendError: the onnx package is not installed, the model is quantised, or it cannot be
            converted.
    """
    try:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as err:
        raise BackendError(
            f"precision fp16 needs onnx and onnxruntime ({err}); run: pip install onnx onnxruntime"
        ) from err
    try:
        model = onnx.load(path)
    except Exception as err:  # protobuf's DecodeError is no public class
        raise BackendError(f"{path}: expected an ONNX model: {err}") from err
    if _QUANTISED & {node.op_type for node in model.graph.node}:
        raise BackendError(
            f"{path}: expected a model without quantised layers for precision fp16; "
            "choose precision model, which keeps its own types"
        )
    try:
        wide = [node.name for node in model.graph.node if _OVERFLOWS in node.name]
        converted = convert_float_to_float16(model, keep_io_types=True, node_block_list=wide)
    except Exception as err:  # the converter raises ValueError, KeyError and protobuf's errors
        raise BackendError(
            f"{path}: cannot be converted to fp16: {err}; export it in half precision and choose "
            "precision model"
        ) from err
    serialised: bytes = converted.SerializeToString()
    return serialised
