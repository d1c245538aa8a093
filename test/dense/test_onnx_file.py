# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import make_tiny_bundle, write_pointwise_onnx

from sparserefine_ros.bundle import Bundle, seal_bundle
from sparserefine_ros.cli import main
from sparserefine_ros.dense.onnx_file import dense_model_file
from sparserefine_ros.errors import BundleError


def test_a_whole_model(tiny_bundle: Path) -> None:
    assert dense_model_file(Bundle.open(tiny_bundle)) == tiny_bundle / "dense.onnx"


@pytest.mark.parametrize("letters", [1, 127, 128, 200, 255, 4095, 4096, 17_000])
def test_weights_in_a_second_file_whatever_its_name(
    letters: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tiny_bundle(tmp_path / "tiny")
    model = folder / "dense.onnx"
    write_pointwise_onnx(model, np.ones((3, 3), np.float32), np.ones(3, np.float32))
    proto = onnx.load(model)
    location = "w" * letters
    for weights in proto.graph.initializer:
        onnx.external_data_helper.set_external_data(weights, location)
        weights.data_location = onnx.TensorProto.EXTERNAL
        weights.ClearField("raw_data")
    model.write_bytes(proto.SerializeToString())
    message = f"expected an ONNX model in one file, its weights lie in '{location}';"
    with pytest.raises(BundleError, match=message):
        dense_model_file(seal_bundle(folder))
    assert main(["bundle", "seal", str(folder)]) == 1
    assert message in capsys.readouterr().err
