# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from conftest import smooth_picture, write_pointwise_onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from sparserefine_ros.bundle import Bundle, seal_bundle
from sparserefine_ros.dense.backends import BACKENDS
from sparserefine_ros.dense.onnxruntime import OnnxRuntimeSegmenter
from sparserefine_ros.dense.options import EngineOptions
from sparserefine_ros.dense.segmenter import Segmenter, open_segmenter
from sparserefine_ros.errors import BackendError, BundleError, ModelOutputError
from sparserefine_ros.processor import available_cores

CLASSES = 4
MEAN, STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
WEIGHT = np.random.default_rng(1).normal(0, 1, (CLASSES, 3)).astype(np.float32)
BIAS = np.random.default_rng(2).normal(0, 1, CLASSES).astype(np.float32)
FREE_SIZE: dict[str, Any] = {"scale": 0.5, "mean": MEAN, "std": STD}


def hand_written(
    folder: Path, *, taken: dict[str, Any] | None = None, given: dict[str, Any] | None = None
) -> Bundle:
    """Seal a `bundle.yaml` as a user would write it around a third party's `model.onnx`."""
    fields = {
        "name": "third party",
        "licence": "unknown",
        "classes": [{"name": f"class {i}", "colour": [i, i, i]} for i in range(CLASSES)],
        "dense": {
            "file": {"path": "model.onnx"},
            "input": copy.deepcopy(taken or FREE_SIZE),
            "output": given or {},
        },
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    return seal_bundle(folder)


def open_cpu(bundle: Bundle, max_batch: int = 1) -> Segmenter:
    engine = EngineOptions(max_batch=max_batch)
    return open_segmenter(bundle, backend="auto", device="cpu", threads=1, engine=engine)


def expected_logits(
    image: NDArray[np.uint8], *, order: str = "RGB", stride: int = 1, softmax: bool = False
) -> torch.Tensor:
    """The whole dense stage in float64."""
    channels = image.astype(np.float64) if order == "RGB" else image[..., ::-1].astype(np.float64)
    pixels = (channels - MEAN) / STD
    maps = torch.from_numpy(np.einsum("ci,hwi->chw", WEIGHT, pixels) + BIAS[:, None, None])[None]
    maps = torch.nn.functional.avg_pool2d(maps, stride)
    if softmax:
        maps = maps.softmax(1)
    maps = torch.nn.functional.interpolate(
        maps, size=image.shape[:2], mode="bilinear", align_corners=False
    )
    return (maps[0].clamp_min(1e-10).log() if softmax else maps[0]).float()


def save_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    *,
    given: list[int | str],
    taken_type: int = TensorProto.FLOAT,
    given_type: int = TensorProto.FLOAT,
    **constants: list[int],
) -> None:
    """Write any graph from `pixels` [1, 3, h, w] to `scores`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("pixels", taken_type, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("scores", given_type, given)],
        [
            onnx.numpy_helper.from_array(np.array(value, np.int64), name)
            for name, value in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("given", ["NCHW", "NHWC"])
@pytest.mark.parametrize("taken", ["NCHW", "NHWC"])
def test_channel_order_and_layouts(tmp_path: Path, taken: str, given: str, order: str) -> None:
    write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, BIAS, layout=taken, output_layout=given)
    bundle = hand_written(
        tmp_path,
        taken={**FREE_SIZE, "layout": taken, "channel_order": order},
        given={"layout": given},
    )
    image = smooth_picture(20, 31)
    logits = open_cpu(bundle)([image])[0].logits
    assert logits.shape == (CLASSES, 20, 31)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected_logits(image, order=order), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_output_kind_and_stride(tmp_path: Path, stride: int, kind: str) -> None:
    softmax = kind == "probabilities"
    write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT * 9, BIAS, stride=stride, softmax=softmax)
    # Weights times nine: the same logits as with a ninth of the deviation.
    taken = {**FREE_SIZE, "std": [value * 9 for value in STD]}
    bundle = hand_written(tmp_path, taken=taken, given={"kind": kind, "stride": stride})
    image = smooth_picture(24, 32)
    logits = open_cpu(bundle)([image])[0].logits
    expected = expected_logits(image, stride=stride, softmax=softmax)
    assert logits.shape == (CLASSES, 24, 32)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_sides_that_the_stride_does_not_divide(tmp_path: Path) -> None:
    write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, BIAS, stride=4)
    segment = open_cpu(hand_written(tmp_path, given={"stride": 4}))
    image = smooth_picture(26, 33)
    logits = segment([image])[0].logits
    assert logits.shape == (CLASSES, 26, 33)
    torch.testing.assert_close(logits, expected_logits(image, stride=4), rtol=1e-4, atol=1e-4)


def test_certain_probabilities_become_finite_logits(tmp_path: Path) -> None:
    write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT * 1e4, BIAS, softmax=True)
    segment = open_cpu(hand_written(tmp_path, given={"kind": "probabilities"}))
    logits = segment([smooth_picture(8, 8)])[0].logits
    assert logits.isfinite().all()
    assert logits.min().item() == pytest.approx(np.log(1e-10), rel=1e-5)
    assert logits.max().item() == pytest.approx(0.0, abs=1e-6)


def test_half_precision_model(tmp_path: Path) -> None:
    write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, BIAS, float_type=TensorProto.FLOAT16)
    image = smooth_picture(12, 10)
    logits = open_cpu(hand_written(tmp_path))([image])[0].logits
    assert logits.dtype == torch.float32
    # Ten bits of mantissa on values up to about ten.
    torch.testing.assert_close(logits, expected_logits(image), rtol=5e-3, atol=2e-2)


class TestBatch:
    @pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
    def test_pictures_of_a_batch(self, tmp_path: Path, layout: str) -> None:
        path = tmp_path / "model.onnx"
        write_pointwise_onnx(path, WEIGHT, BIAS, batch="n", layout=layout, output_layout=layout)
        taken, given = FREE_SIZE | {"layout": layout}, {"layout": layout}
        bundle = hand_written(tmp_path, taken=taken, given=given)
        segment = open_cpu(bundle, max_batch=3)
        for count in (3, 1, 2):
            images = [smooth_picture(9, 14, seed) for seed in range(count)]
            found = segment(images)
            assert len(found) == count
            for image, each in zip(images, found, strict=True):
                torch.testing.assert_close(
                    each.logits, expected_logits(image), rtol=1e-4, atol=1e-4
                )

    def test_a_model_for_one_picture(self, tmp_path: Path) -> None:
        write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, BIAS)
        bundle = hand_written(tmp_path)
        message = r"a batch axis of 1 for max_batch 2; export it .* or set max_batch to 1"
        with pytest.raises(BundleError, match=message):
            open_cpu(bundle, max_batch=2)

    @pytest.mark.parametrize("max_batch", [1, 4])
    def test_a_model_for_another_number(self, tmp_path: Path, max_batch: int) -> None:
        write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, BIAS, batch=4)
        message = f"got a batch axis of 4 for max_batch {max_batch}; export it with a free batch"
        with pytest.raises(BundleError, match=message):
            open_cpu(hand_written(tmp_path), max_batch=max_batch)


class TestInputSize:
    def test_fixed(self, tmp_path: Path) -> None:
        write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, BIAS, input_size=(16, 24))
        bundle = hand_written(tmp_path, taken={"size": [16, 24], "mean": MEAN, "std": STD})
        image = smooth_picture(16, 24)
        torch.testing.assert_close(
            open_cpu(bundle)([image])[0].logits, expected_logits(image), rtol=1e-4, atol=1e-4
        )

    def test_fixed_nhwc(self, tmp_path: Path) -> None:
        write_pointwise_onnx(
            tmp_path / "model.onnx", WEIGHT, BIAS, input_size=(16, 24), layout="NHWC"
        )
        bundle = hand_written(tmp_path, taken={"size": [16, 24], "layout": "NHWC"})
        assert open_cpu(bundle)([smooth_picture(16, 24)])[0].size == (16, 24)

    def test_free_serves_any_size(self, tmp_path: Path) -> None:
        write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, BIAS)
        segment = open_cpu(hand_written(tmp_path))
        for size in ((8, 9), (31, 17), (8, 9), (1, 1)):
            image = smooth_picture(*size)
            torch.testing.assert_close(
                segment([image])[0].logits, expected_logits(image), rtol=1e-4, atol=1e-4
            )

    def test_one_free_side(self, tmp_path: Path) -> None:
        write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, BIAS, input_size=(16, "w"))
        bundle = hand_written(tmp_path, taken={"size": [16, 24]})
        assert open_cpu(bundle)([smooth_picture(16, 24)])[0].size == (16, 24)

    @pytest.mark.parametrize("taken", [{"size": [24, 16]}, {"scale": 0.5}])
    def test_contradiction_names_the_right_size(
        self, tmp_path: Path, taken: dict[str, Any]
    ) -> None:
        write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, BIAS, input_size=(16, 24))
        bundle = hand_written(tmp_path, taken=taken)
        with pytest.raises(BundleError, match=r"set dense.input.size: \[16, 24\]"):
            open_cpu(bundle)

    @pytest.mark.parametrize(("layout", "other"), [("NCHW", "NHWC"), ("NHWC", "NCHW")])
    def test_wrong_layout(self, tmp_path: Path, layout: str, other: str) -> None:
        write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, BIAS, layout=layout)
        bundle = hand_written(tmp_path, taken={**FREE_SIZE, "layout": other})
        with pytest.raises(BundleError, match=r"3 channels .* correct dense.input.layout"):
            open_cpu(bundle)


class TestClasses:
    def test_wrong_number_known_beforehand(self, tmp_path: Path) -> None:
        write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT[:3], BIAS[:3])
        bundle = hand_written(tmp_path)
        with pytest.raises(BundleError, match=r"expected .* 4 channels .* got \[1, 3,"):
            open_cpu(bundle)

    def test_wrong_number_seen_at_run_time(self, tmp_path: Path) -> None:
        # As many channels as the picture has rows.
        nodes = [
            helper.make_node("Concat", ["pixels", "pixels"], ["six"], axis=1),
            helper.make_node("Shape", ["pixels"], ["rows"], start=2, end=3),
            helper.make_node("Slice", ["six", "zero", "rows", "one"], ["scores"]),
        ]
        save_graph(tmp_path / "model.onnx", nodes, given=[1, "c", "h", "w"], zero=[0], one=[1])
        segment = open_cpu(hand_written(tmp_path))
        assert segment([smooth_picture(4, 9)])[0].logits.shape == (4, 4, 9)
        message = r"expected dense output \[1, 4, h / 1, w / 1\] .* got \[1, 5, 5, 9\]"
        with pytest.raises(ModelOutputError, match=message):
            segment([smooth_picture(5, 9)])
        assert segment([smooth_picture(4, 9)])[0].logits.shape == (4, 4, 9)

    def test_wrong_stride(self, tmp_path: Path) -> None:
        write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, BIAS, stride=4)
        segment = open_cpu(hand_written(tmp_path, given={"stride": 2}))
        with pytest.raises(
            ModelOutputError, match=r"32 x 16 / 2, got 8 x 4; correct output.stride"
        ):
            segment([smooth_picture(32, 16)])

    def test_label_maps_are_not_logits(self, tmp_path: Path) -> None:
        save_graph(
            tmp_path / "model.onnx",
            [helper.make_node("ArgMax", ["pixels"], ["scores"], axis=1, keepdims=0)],
            given=[1, "h", "w"],
            given_type=TensorProto.INT64,
        )
        bundle = hand_written(tmp_path)
        with pytest.raises(
            BundleError, match=r"a score for each class, got .*int64.* before its argmax"
        ):
            open_cpu(bundle)


class TestBadModels:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_not_finite(self, tmp_path: Path, value: float) -> None:
        bias = BIAS.copy()
        bias[2] = value
        write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, bias)
        segment = open_cpu(hand_written(tmp_path))
        with pytest.raises(ModelOutputError, match="returned NaN or infinity; check its weights"):
            segment([smooth_picture(8, 9)])

    def test_sides_that_the_network_cannot_take(self, tmp_path: Path) -> None:
        down = {"kernel_shape": [2, 2], "strides": [2, 2]}
        nodes = [
            helper.make_node("MaxPool", ["pixels"], ["half"], **down),
            helper.make_node("DepthToSpace", ["twelve"], ["whole"], blocksize=2),
            helper.make_node("Concat", ["half", "half", "half", "half"], ["twelve"], axis=1),
            helper.make_node("Add", ["pixels", "whole"], ["sum"]),
            helper.make_node("Concat", ["sum", "sum"], ["six"], axis=1),
            helper.make_node("Slice", ["six", "zero", "four", "one"], ["scores"]),
        ]
        nodes[1], nodes[2] = nodes[2], nodes[1]
        constants = {"zero": [0], "four": [4], "one": [1]}
        save_graph(tmp_path / "model.onnx", nodes, given=[1, 4, "h", "w"], **constants)
        segment = open_cpu(hand_written(tmp_path))
        segment([smooth_picture(8, 12)])
        with pytest.raises(
            ModelOutputError, match=r"set dense\.input\.multiple_of in bundle\.yaml"
        ):
            segment([smooth_picture(8, 11)])

    def test_recovers_after_a_bad_frame(self, tmp_path: Path) -> None:
        nodes = [
            helper.make_node("Concat", ["pixels", "pixels"], ["six"], axis=1),
            helper.make_node("Slice", ["six", "zero", "four", "one"], ["first"]),
            helper.make_node("Div", ["first", "first"], ["scores"]),
        ]
        constants = {"zero": [0], "four": [4], "one": [1]}
        save_graph(tmp_path / "model.onnx", nodes, given=[1, 4, "h", "w"], **constants)
        plain = {"scale": 0.5, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
        segment = open_cpu(hand_written(tmp_path, taken=plain))
        white, black = np.full((4, 4, 3), 255, np.uint8), np.zeros((4, 4, 3), np.uint8)
        assert (segment([white])[0].logits == 1).all()
        with pytest.raises(ModelOutputError):
            segment([black])
        assert (segment([white])[0].logits == 1).all()

    def test_a_model_that_fails_while_running(self, tmp_path: Path) -> None:
        reshape = helper.make_node("Reshape", ["pixels", "shape"], ["scores"])
        save_graph(tmp_path / "model.onnx", [reshape], given=[1, 4, 3, 5], shape=[1, 4, 3, 5])
        segment = open_cpu(hand_written(tmp_path))
        with pytest.raises(ModelOutputError, match="the dense model failed: "):
            segment([smooth_picture(8, 9)])

    def test_garbage(self, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(b"this is no model")
        bundle = hand_written(tmp_path)
        with pytest.raises(BackendError, match=r"ONNX Runtime refuses .*model.onnx: "):
            open_cpu(bundle)

    def test_integer_input(self, tmp_path: Path) -> None:
        save_graph(
            tmp_path / "model.onnx",
            [helper.make_node("Cast", ["pixels"], ["scores"], to=TensorProto.FLOAT)],
            given=[1, "c", "h", "w"],
            taken_type=TensorProto.UINT8,
        )
        bundle = hand_written(tmp_path)
        with pytest.raises(BundleError, match=r"float32 or float16 input, got tensor\(uint8\)"):
            open_cpu(bundle)

    def test_several_outputs_need_a_name(self, tmp_path: Path) -> None:
        model = tmp_path / "model.onnx"
        write_pointwise_onnx(model, WEIGHT, BIAS)
        proto = onnx.load(model)
        proto.graph.node.append(helper.make_node("Neg", ["scores"], ["auxiliary"]))
        extra = copy.deepcopy(proto.graph.output[0])
        extra.name = "auxiliary"
        proto.graph.output.append(extra)
        onnx.save(proto, model)
        for name in (None, "loss"):
            bundle = hand_written(tmp_path, given={"name": name} if name else {})
            message = r"dense.output.name to be one of \['scores', 'auxiliary'\], got "
            with pytest.raises(BundleError, match=message):
                open_cpu(bundle)
        image = smooth_picture(6, 7)
        scores, auxiliary = (
            open_cpu(hand_written(tmp_path, given={"name": name}))([image])[0].logits
            for name in ("scores", "auxiliary")
        )
        torch.testing.assert_close(auxiliary, -scores)

    def test_wrong_input_name(self, tmp_path: Path) -> None:
        write_pointwise_onnx(tmp_path / "model.onnx", WEIGHT, BIAS)
        bundle = hand_written(tmp_path, taken={**FREE_SIZE, "name": "image"})
        with pytest.raises(BundleError, match=r"dense.input.name to be one of \['pixels'\]"):
            open_cpu(bundle)

    def test_weights_in_a_second_file_are_not_trusted_blindly(self, tmp_path: Path) -> None:
        model = tmp_path / "model.onnx"
        write_pointwise_onnx(model, WEIGHT, BIAS)
        onnx.save(
            onnx.load(model),
            model,
            save_as_external_data=True,
            location="model.onnx.data",
            size_threshold=0,
        )
        weights = tmp_path / "model.onnx.data"
        bundle = hand_written(tmp_path)
        content = bytearray(weights.read_bytes())
        content[1] ^= 0x40
        weights.write_bytes(content)
        # Either such models are refused, or a changed byte in the second file is noticed.
        with pytest.raises((BundleError, BackendError)):
            open_cpu(Bundle.open(bundle.folder))


class TestFeatures:
    """A second output; the third party's scores serve as features too."""

    @staticmethod
    def bundle(folder: Path, *, inputs: list[str], channels: int = CLASSES) -> Bundle:
        write_pointwise_onnx(folder / "model.onnx", WEIGHT, BIAS, stride=2)
        (folder / "weights").write_bytes(b"not opened by the dense stage")
        bundle = hand_written(folder, given={"stride": 2})
        fields = bundle.spec.model_dump(mode="json", exclude_none=True)
        fields["dense"]["features"] = {"name": "scores", "channels": channels}
        fields["selector"] = {"threshold_nats": 0.5}
        fields["refiner"] = {"file": {"path": "weights"}, "widths": [4], "inputs": inputs}
        (folder / "bundle.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
        return seal_bundle(folder)

    def test_come_at_the_models_own_size(self, tmp_path: Path) -> None:
        image = smooth_picture(20, 28)
        dense = open_cpu(self.bundle(tmp_path, inputs=["features", "rgb"]))([image])[0]
        assert dense.features is not None
        assert dense.features.shape == (CLASSES, 10, 14)
        enlarged = torch.nn.functional.interpolate(
            dense.features[None], size=(20, 28), mode="bilinear", align_corners=False
        )[0]
        torch.testing.assert_close(enlarged, dense.logits, rtol=1e-4, atol=1e-4)

    def test_are_left_out_where_nobody_uses_them(self, tmp_path: Path) -> None:
        bundle = self.bundle(tmp_path, inputs=["rgb"], channels=7)
        assert open_cpu(bundle)([smooth_picture(20, 28)])[0].features is None

    def test_wrong_number_of_channels(self, tmp_path: Path) -> None:
        bundle = self.bundle(tmp_path, inputs=["features"], channels=7)
        with pytest.raises(BundleError, match="expected 4-D features with 7 channels"):
            open_cpu(bundle)

    def test_a_refiner_cannot_use_features_that_are_not_described(self, tmp_path: Path) -> None:
        bundle = self.bundle(tmp_path, inputs=["features"])
        fields = bundle.spec.model_dump(mode="json", exclude_none=True)
        del fields["dense"]["features"]
        (tmp_path / "bundle.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
        with pytest.raises(BundleError, match=r"expected dense\.features for a refiner"):
            seal_bundle(tmp_path)


class TestBackends:
    def test_unknown_backend_lists_the_known_ones(self, tiny_bundle: Path) -> None:
        with pytest.raises(BackendError) as caught:
            open_segmenter(Bundle.open(tiny_bundle), backend="caffe", device="cpu", threads=1)
        assert "got 'caffe'" in str(caught.value)
        for name in ("auto", *BACKENDS):
            assert name in str(caught.value)

    def test_unknown_device(self, tiny_bundle: Path) -> None:
        with pytest.raises(BackendError, match="runs on device cpu or cuda, got 'tpu'; choose cpu"):
            open_segmenter(Bundle.open(tiny_bundle), backend="onnxruntime", device="tpu", threads=1)

    def test_missing_engine_names_the_install_step(
        self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(BackendError, match="not installed; run: pip install onnxruntime"):
            open_segmenter(Bundle.open(tiny_bundle), backend="onnxruntime", device="cpu", threads=1)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_description_names_engine_and_threads(self, tiny_bundle: Path, threads: int) -> None:
        bundle = Bundle.open(tiny_bundle)
        segment = open_segmenter(bundle, backend="onnxruntime", device="cpu", threads=threads)
        assert segment.description == f"onnxruntime CPU, {threads} threads"

    def test_zero_threads_is_one_per_core(self, tiny_bundle: Path) -> None:
        segment = open_segmenter(Bundle.open(tiny_bundle), backend="auto", device="cpu", threads=0)
        assert segment.description.startswith(f"onnxruntime CPU, {available_cores()} threads")


def test_no_other_provider_steps_in(tiny_bundle: Path) -> None:
    """ONNX Runtime would do so of itself where one fails, without the options."""
    bundle = Bundle.open(tiny_bundle)
    segmenter = open_segmenter(bundle, backend="onnxruntime", device="cpu", threads=1)
    assert isinstance(segmenter, OnnxRuntimeSegmenter)
    assert not segmenter._session._enable_fallback
