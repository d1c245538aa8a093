# SPDX-License-Identifier: Apache-2.0
"""Halves an ONNX file: weights are stored as float16 and cast to float32 when a session opens.

Computation stays float32. A weight moves by at most 2^-11 of itself, a twentieth of a percent, or
by 3e-8 where that is more.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from sparserefine_ros.errors import BackendError

if TYPE_CHECKING:
    import onnx

# Smaller tensors, such as biases and shapes, are not worth a node.
_FEWEST: Final = 1024


def halve_weights(path: Path) -> None:
    """Rewrite the model at `path`; it is replaced only once the new one is whole.

    Raises:
        BackendError: the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError as err:
        raise BackendError(
            "expected the package onnx to store weights as float16; run: pip install onnx"
        ) from err
    model = onnx.load(str(path))
    casts = [_halve(tensor) for tensor in model.graph.initializer if _is_worth_halving(tensor)]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    aside = path.with_suffix(".tmp")
    onnx.save(model, str(aside))
    aside.replace(path)


def _is_worth_halving(tensor: onnx.TensorProto) -> bool:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _FEWEST:
        return False
    largest = float(np.abs(numpy_helper.to_array(tensor)).max())
    return largest < float(np.finfo(np.float16).max)


def _halve(tensor: onnx.TensorProto) -> onnx.NodeProto:
    """Make the tensor float16 under a new name; return the node that casts it to the old one."""
    from onnx import TensorProto, helper, numpy_helper

    name = tensor.name
    half = numpy_helper.to_array(tensor).astype(np.float16)
    tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_float16"))
    return helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT)
