# SPDX-License-Identifier: Apache-2.0
"""The TensorRT backends: refusal without a GPU, and results on one against ONNX Runtime."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import smooth_picture

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.backends import NOT_FOR_RTX, installed_package
from sparserefine_ros.dense.contract import GraphTensor
from sparserefine_ros.dense.options import EngineOptions
from sparserefine_ros.dense.segmenter import Segmenter, open_segmenter
from sparserefine_ros.dense.tensorrt import RefusedEngineError, TensorRtSegmenter, _refusal
from sparserefine_ros.dense.tensorrt_library import Library, load_library
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
    there = torch.cuda.is_available()
    if there and flavour == "tensorrt_rtx" and torch.cuda.get_device_capability() in NOT_FOR_RTX:
        pytest.skip("TensorRT for RTX is not made for this GPU")
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


class FakeContext:
    """Takes any shape; the outputs have that of the input."""

    shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] < 9

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        pass


def fake_segmenter(*outputs: GraphTensor) -> TensorRtSegmenter:
    segmenter = TensorRtSegmenter.__new__(TensorRtSegmenter)
    given = GraphTensor("image", (-1, 3, -1, -1), "float32")
    profile = SimpleNamespace(get_tensor_profile_shape=lambda *_: ((1,), (1,), (8,)))
    parts: dict[str, Any] = {
        "_buffers": None, "_context": FakeContext(), "_engine": profile, "_outputs": list(outputs),
        "_contract": SimpleNamespace(input=given), "_device": torch.device("cpu"),
        "_captures": False,
    }  # fmt: skip
    vars(segmenter).update(parts)
    return segmenter


LOGITS = GraphTensor("logits", (-1, 11, -1, -1), "float32")


def test_buffers_of_another_shape_are_not_run_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segmenter, small, large = fake_segmenter(LOGITS), (1, 3, 8, 8), (4, 3, 8, 8)
    first = segmenter._fit(small)
    assert segmenter._fit(small) is first
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", raise_out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            segmenter._fit(large)
    again = segmenter._fit(small)
    assert again is not first
    assert segmenter._context.shape == again.input.shape == small
    with pytest.raises(ModelOutputError, match="give picture_sizes and max_batch"):
        segmenter._fit((9, 3, 8, 8))
    assert segmenter._fit(small) is not again


def raise_out_of_memory(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("element", ["int64", "int32", "uint8", "bool"])
def test_an_output_that_nobody_uses_may_be_of_any_type(element: str) -> None:
    labels = GraphTensor("labels", (-1, -1, -1), element)
    buffers = fake_segmenter(LOGITS, labels)._fit((1, 3, 8, 8))
    assert str(buffers.outputs["labels"].dtype) == f"torch.{element}"


@pytest.mark.parametrize(
    "odd",
    [GraphTensor("small", (-1, -1), "float8"), GraphTensor("boxes", (-2,), "float32")],
    ids=["type", "size"],
)
def test_an_output_that_cannot_be_held_is_named(
    odd: GraphTensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = fake_segmenter(LOGITS, odd)
    whole = FakeContext.get_tensor_shape
    monkeypatch.setattr(
        FakeContext,
        "get_tensor_shape",
        lambda self, name: (-1,) if name == "boxes" else whole(self, name),
    )
    with pytest.raises(
        ModelOutputError, match=f"expected {odd.name} of a known size and of float32"
    ):
        segmenter._fit((1, 3, 8, 8))


def test_errors_are_heard_by_those_who_listen_and_all_leave_in_any_order() -> None:
    log = SimpleNamespace(listeners=[])
    library = Library("tensorrt", None, log)
    first, second = library.complaints(), library.complaints()
    heard_first, heard_second = first.__enter__(), second.__enter__()
    second.__exit__(None, None, None)
    assert [each is heard_first for each in log.listeners] == [True]
    log.listeners[0].append("late")
    first.__exit__(None, None, None)
    assert (heard_first, heard_second, log.listeners) == (["late"], [], [])


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
    with pytest.raises(ModelOutputError, match="give picture_sizes and max_batch that hold it"):
        segment([smooth_picture(256, 512)])
    assert segment([smooth_picture(64, 96)])[0].size == (64, 96)


@needs_gpu
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_second_start_takes_the_engine_from_the_cache(flavour: str, tmp_path: Path) -> None:
    image = smooth_picture(128, 192)
    first = open_engine(flavour, tmp_path)([image])[0].logits
    second = open_engine(flavour, tmp_path, build=False)([image])[0].logits
    torch.testing.assert_close(first, second)
