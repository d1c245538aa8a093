# SPDX-License-Identifier: Apache-2.0
"""Weights stored as float16: half the file, the same results within their rounding."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from sparserefine_ros.errors import BackendError
from sparserefine_ros.zoo.export import export_onnx
from sparserefine_ros.zoo.half_weights import halve_weights


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 5, 1),
    ).eval()  # fmt: skip


def run(path: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": image})
    assert logits.dtype == np.float32
    return np.asarray(logits)


def test_half_the_file_and_the_same_results(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    path = tmp_path / "dense.onnx"
    export_onnx(make_network(), path)
    image = np.random.default_rng(0).standard_normal((1, 3, 21, 33), np.float32)
    before, size = run(path, image), path.stat().st_size
    halve_weights(path)
    after = run(path, image)
    assert path.stat().st_size < 0.6 * size
    assert 0.0 < np.abs(after - before).max() < 2e-3 * np.abs(before).max()
    assert [file.name for file in tmp_path.iterdir()] == ["dense.onnx"]


def test_weights_beyond_float16_stay_as_they_are(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
    network, path = make_network(), tmp_path / "dense.onnx"
    with torch.no_grad():
        network[2].weight[0, 0, 0, 0] = 1e6  # type: ignore[index]
    export_onnx(network, path)
    halve_weights(path)
    kinds = {tensor.data_type for tensor in onnx.load(str(path)).graph.initializer}
    assert onnx.TensorProto.FLOAT in kinds
    image = np.ones((1, 3, 9, 9), np.float32)
    assert np.isfinite(run(path, image)).all()


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendError, match="pip install onnx"):
        halve_weights(tmp_path / "dense.onnx")
