# SPDX-License-Identifier: Apache-2.0
"""OpenVINO against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from conftest import smooth_picture, write_pointwise_onnx
from dense.test_onnxruntime import BIAS, CLASSES, FREE_SIZE, WEIGHT, hand_written
from onnx import TensorProto

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.options import EngineOptions
from sparserefine_ros.dense.segmenter import open_segmenter
from sparserefine_ros.errors import BackendError, BundleError, ModelOutputError
from sparserefine_ros.records import DenseOutput

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
STREET = Path(__file__).parents[2] / "models" / "street_small"


def run(
    bundle: Bundle, backend: str, *sizes: tuple[int, int], precision: str = "model"
) -> list[DenseOutput]:
    engine = EngineOptions(precision)
    segment = open_segmenter(bundle, backend=backend, device="cpu", threads=1, engine=engine)
    return [segment([smooth_picture(*size)])[0] for size in sizes]


def test_the_shipped_model_at_sizes_that_change() -> None:
    bundle, sizes = Bundle.open(STREET), ((36, 52), (48, 64), (36, 52))
    pairs = zip(run(bundle, "openvino", *sizes), run(bundle, "onnxruntime", *sizes), strict=True)
    for found, expected in pairs:
        # Sums of some hundred terms in another order, through some fifty layers.
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-3)
        assert found.features is not None
        torch.testing.assert_close(found.features, expected.features, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("float_type", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_layouts_and_half_precision_models(tmp_path: Path, layout: str, float_type: int) -> None:
    write_pointwise_onnx(
        tmp_path / "model.onnx",
        WEIGHT,
        BIAS,
        layout=layout,
        output_layout=layout,
        stride=2,
        float_type=float_type,
    )
    bundle = hand_written(
        tmp_path, taken={**FREE_SIZE, "layout": layout}, given={"layout": layout, "stride": 2}
    )
    (found,), (expected,) = (
        run(bundle, backend, (20, 32)) for backend in ("openvino", "onnxruntime")
    )
    tolerance = 1e-4 if float_type == TensorProto.FLOAT else 2e-2
    torch.testing.assert_close(found.logits, expected.logits, rtol=tolerance, atol=tolerance)


def test_bfloat16_rounds_and_says_so() -> None:
    bundle = Bundle.open(STREET)
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(BackendError, match="expected a processor that computes in bfloat16"):
            run(bundle, "openvino", (36, 52), precision="bf16")
        return
    (exact,), (rounded,) = (
        run(bundle, "openvino", (36, 52), precision=precision) for precision in ("model", "bf16")
    )
    difference = (exact.logits - rounded.logits).abs().max().item()
    # Seven bits of mantissa.
    assert 0 < difference < 0.2 * exact.logits.abs().max().item()


def test_results_do_not_change_when_the_next_picture_comes() -> None:
    segment = open_segmenter(Bundle.open(STREET), backend="openvino", device="cpu", threads=1)
    first = segment([smooth_picture(36, 52)])[0]
    kept = first.logits.clone()
    segment([smooth_picture(36, 52, seed=5)])
    assert torch.equal(first.logits, kept)


def test_pictures_of_a_batch() -> None:
    segment = open_segmenter(
        Bundle.open(STREET),
        backend="openvino",
        device="cpu",
        threads=1,
        engine=EngineOptions(max_batch=3),
    )
    images = [smooth_picture(36, 52, seed) for seed in range(3)]
    alone = [segment([image])[0] for image in images]
    for expected, found in zip(alone, segment(images), strict=True):
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.features, expected.features, rtol=1e-3, atol=1e-3)


def test_bad_models_are_told(tmp_path: Path) -> None:
    bias = BIAS.copy()
    bias[1] = float("nan")
    write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, bias)
    with pytest.raises(ModelOutputError, match="returned NaN or infinity"):
        run(hand_written(tmp_path), "openvino", (8, 9))
    write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT[:3], BIAS[:3])
    with pytest.raises(BundleError, match=rf"expected .* {CLASSES} channels .* got \[1, 3,"):
        run(hand_written(tmp_path), "openvino", (8, 9))
    (tmp_path / "model.onnx").write_bytes(b"this is no model")
    with pytest.raises(BackendError, match=r"OpenVINO refuses .*model\.onnx: "):
        run(hand_written(tmp_path), "openvino", (8, 9))


def test_description_names_engine_precision_and_threads(tiny_bundle: Path) -> None:
    segment = open_segmenter(Bundle.open(tiny_bundle), backend="openvino", device="cpu", threads=2)
    assert segment.description == "openvino CPU fp32, 2 threads"


def test_a_graph_that_ends_in_an_identity(tmp_path: Path) -> None:
    """OpenVINO leaves it out; its output has both names then."""
    write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, BIAS)
    model = onnx.load(tmp_path / "model.onnx")
    (output,) = model.graph.output
    inner = output.name
    output.name = "final"
    model.graph.node.append(onnx.helper.make_node("Identity", [inner], ["final"]))
    onnx.save(model, tmp_path / "model.onnx")
    bundle = hand_written(tmp_path, taken=FREE_SIZE, given={"name": "final"})
    (found,), (expected,) = (
        run(bundle, backend, (20, 32)) for backend in ("openvino", "onnxruntime")
    )
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
