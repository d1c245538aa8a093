# SPDX-License-Identifier: Apache-2.0
"""What TensorRT's complaints are turned into, and networks with quantised layers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparserefine_ros.dense.backends import installed_package
from sparserefine_ros.dense.contract import GraphTensor
from sparserefine_ros.dense.engine_builder import build_engine, first_cause
from sparserefine_ros.dense.options import Progress, silent
from sparserefine_ros.dense.tensorrt_library import PORTABLE, load_library
from sparserefine_ros.errors import BackendError


@pytest.mark.parametrize(
    ("complaints", "told"),
    [
        (["first\n", "second"], "first"),
        ([], "it gives no reason; its log at level DEBUG may tell more"),
        (
            ["Requested size was 9 bytes.", "Error Code 2: OutOfMemory (...)"],
            "Requested size was 9 bytes.; free GPU memory or choose smaller pictures",
        ),
        (
            ["cudaError 35: CUDA driver version is insufficient for CUDA runtime version"],
            "cudaError 35: CUDA driver version is insufficient for CUDA runtime version; update "
            "the NVIDIA driver, it is older than this runtime needs, or absent",
        ),
        (["Invalid profile.", "CUDA driver version is insufficient"], "Invalid profile."),
    ],
    ids=["cause first", "silence", "memory", "driver", "a driver that is not the cause"],
)
def test_complaints_in_words(complaints: list[str], told: str) -> None:
    assert first_cause(complaints) == told


def quantised_convolution() -> onnx.ModelProto:
    """int8 by symmetric Q/DQ around input and weight of one convolution."""
    weight = np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["y"], pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 16, 24])],
        [
            numpy_helper.from_array(np.array(0.02, np.float32), "scale"),
            numpy_helper.from_array(np.array(0, np.int8), "zero"),
            numpy_helper.from_array(weight, "weight"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


needs_rtx = pytest.mark.skipif(
    installed_package("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed"
)


@needs_rtx
@pytest.mark.parametrize("error", [KeyboardInterrupt, BackendError])
def test_what_the_report_raises_ends_the_build(error: type[BaseException]) -> None:
    told: list[float] = []

    def report(progress: Progress) -> None:
        told.append(progress.share)
        if progress.share > 0.0:
            raise error("enough")

    load_library.cache_clear()
    with pytest.raises(error, match="enough"):
        build_engine(
            load_library("tensorrt_rtx"),
            quantised_convolution().SerializeToString(),
            shapes=[(1, 3, 16, 24)],
            target=PORTABLE,
            check=lambda inputs, outputs: inputs[0].name,
            report=report,
        )
    assert 0.0 < told[1] < 1.0


@needs_rtx
def test_quantised_networks_are_built_as_they_are() -> None:
    seen: list[GraphTensor] = []

    def check(inputs: list[GraphTensor], outputs: list[GraphTensor]) -> str:
        seen.extend([*inputs, *outputs])
        return inputs[0].name

    load_library.cache_clear()
    engine = build_engine(
        load_library("tensorrt_rtx"),
        quantised_convolution().SerializeToString(),
        shapes=[(1, 3, 16, 24)],
        target=PORTABLE,
        check=check,
        report=silent,
    )
    assert len(engine) > 1000
    assert seen == [
        GraphTensor("x", [1, 3, 16, 24], "float32"),
        GraphTensor("y", [1, 4, 16, 24], "float32"),
    ]
