# SPDX-License-Identifier: Apache-2.0
"""The TensorRT backends: refusal without a GPU, and results on one against ONNX Runtime."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import smooth_picture

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.backends import installed_package
from sparserefine_ros.dense.options import EngineOptions
from sparserefine_ros.dense.segmenter import Segmenter, open_segmenter
from sparserefine_ros.dense.tensorrt import RefusedEngineError, _refusal
from sparserefine_ros.dense.tensorrt_library import load_library
from sparserefine_ros.errors import BackendError, ModelOutputError

STREET = Path(__file__).parents[2] / "models" / "street_small"
FLAVOURS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(installed_package(name) is None, reason=f"{name} not installed"),
    )
    for name in ("tensorrt", "tensorrt_rtx")
]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def open_engine(flavour: str, cache: Path, **engine: Any) -> Segmenter:
    load_library.cache_clear()
    options = EngineOptions(cache=cache, **{"picture_sizes": ((256, 384),), **engine})
    return open_segmenter(
        Bundle.open(STREET), backend=flavour, device="cuda", threads=1, engine=options
    )


def open_reference() -> Segmenter:
    return open_segmenter(Bundle.open(STREET), backend="onnxruntime", device="cpu", threads=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_without_a_gpu_it_says_so_before_any_work(flavour: str, tmp_path: Path) -> None:
    begun_s = time.perf_counter()
    message = rf"expected an NVIDIA GPU \(cuda\) for backend {flavour}, found none; .+"
    with pytest.raises(BackendError, match=message):
        open_engine(flavour, tmp_path / "engines")
    assert time.perf_counter() - begun_s < 5.0
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize(
    ("said", "again"),
    [
        ("version mismatch", True),
        ("malformed engine", True),
        ("old cuda driver", False),
        ("insufficient gpu memory", False),
    ],
)
def test_an_engine_is_built_again_only_where_that_can_help(said: str, again: bool) -> None:
    error = _refusal("it does not load the engine", said)
    assert str(error) == f"it does not load the engine: {said}"
    assert isinstance(error, RefusedEngineError) is again


@needs_gpu
@pytest.mark.parametrize("precision", ["model", "fp16"])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_labels_are_those_of_onnx_runtime(flavour: str, precision: str, tmp_path: Path) -> None:
    segment, reference = open_engine(flavour, tmp_path, precision=precision), open_reference()
    for seed in range(4):  # the second and later runs replay a CUDA graph
        image = smooth_picture(128, 192, seed)
        found, expected = segment([image])[0], reference([image])[0]
        assert found.logits.shape == expected.logits.shape
        assert found.features is not None
        assert expected.features is not None
        assert found.features.shape == expected.features.shape
        same = (found.logits.argmax(0) == expected.logits.argmax(0)).float().mean().item()
        assert same >= 0.995
    assert flavour in segment.description


@needs_gpu
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_range_of_sizes(flavour: str, tmp_path: Path) -> None:
    sizes = ((128, 192), (256, 384), (256, 512))
    segment = open_engine(flavour, tmp_path, picture_sizes=sizes)
    reference = open_reference()
    for size in ((64, 96), (128, 256), (100, 200), (64, 96)):
        image = smooth_picture(*size)
        found, expected = segment([image])[0].logits, reference([image])[0].logits
        np.testing.assert_array_equal(found.shape, expected.shape)
        assert (found.argmax(0) == expected.argmax(0)).float().mean().item() >= 0.995
    with pytest.raises(ModelOutputError, match="give picture_sizes that hold it"):
        segment([smooth_picture(256, 512)])
    assert segment([smooth_picture(64, 96)])[0].size == (64, 96)


@needs_gpu
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_second_start_takes_the_engine_from_the_cache(flavour: str, tmp_path: Path) -> None:
    image = smooth_picture(128, 192)
    first = open_engine(flavour, tmp_path)([image])[0].logits
    second = open_engine(flavour, tmp_path, build=False)([image])[0].logits
    torch.testing.assert_close(first, second)
