# SPDX-License-Identifier: Apache-2.0
"""Half-precision models against their float32 originals, in ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import write_pointwise_onnx
from onnx import TensorProto, helper

from sparserefine_ros.dense.half import to_half
from sparserefine_ros.errors import BackendError

MODEL = Path(__file__).parents[2] / "models" / "street_small" / "dense.onnx"


def run(model: bytes, pixels: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: pixels})


def test_the_shipped_model_keeps_its_names_types_and_labels() -> None:
    pixels = np.random.default_rng(0).normal(0, 1, (1, 3, 36, 52)).astype(np.float32)
    half = to_half(MODEL)
    assert len(half) < 0.6 * MODEL.stat().st_size
    graph = onnx.load_from_string(half).graph
    original = onnx.load(MODEL).graph
    assert list(graph.input) == list(original.input)
    assert [o.name for o in graph.output] == [o.name for o in original.output]
    weights = {t.data_type for t in graph.initializer} & {TensorProto.FLOAT, TensorProto.FLOAT16}
    assert weights == {TensorProto.FLOAT16}
    expected, found = run(MODEL.read_bytes(), pixels), run(half, pixels)
    for exact, rounded in zip(expected, found, strict=True):
        assert rounded.dtype == np.float32
        # Ten bits of mantissa through some fifty layers.
        assert np.abs(rounded - exact).max() < 0.02 * np.abs(exact).max()
    same = (expected[0].argmax(1) == found[0].argmax(1)).mean()
    assert same > 0.98


def test_quantised_models_keep_their_own_types(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["pixels", "scale", "zero"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "scale", "zero"], ["scores"]),
    ]
    sides = [1, 3, "h", "w"]
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, sides)],
        [
            onnx.numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
            onnx.numpy_helper.from_array(np.array(0, np.int8), "zero"),
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(BackendError, match=r"without quantised layers .* choose precision model"):
        to_half(tmp_path / "m.onnx")


def test_garbage(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff\xfe no model")
    with pytest.raises(BackendError, match=r"m\.onnx: expected an ONNX model"):
        to_half(tmp_path / "m.onnx")


def test_a_missing_converter_names_the_install_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pointwise_onnx(tmp_path / "m.onnx", np.ones((2, 3)), np.ones(2))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendError, match="pip install onnx onnxruntime"):
        to_half(tmp_path / "m.onnx")
