# SPDX-License-Identifier: Apache-2.0
"""What stays on a GPU against what comes down from it; both looked at on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.contract import Contract, GraphTensor
from sparserefine_ros.errors import BundleError, ModelOutputError

CLASSES, FEATURES = 3, 5
SIZE = (12, 20)
IMAGES = [np.zeros((*SIZE, 3), np.uint8)]


def make_contract(tiny_bundle: Path, *, features: str = "", **output: Any) -> Contract:
    """For a model with the outputs that a bundle describes so."""
    bundle = Bundle.open(tiny_bundle)
    fields = bundle.spec.model_dump()
    fields["dense"]["output"] |= {"name": "logits", **output}
    outputs = [GraphTensor("logits", ["b", "c", "h", "w"], "float32")]
    if features:
        fields["dense"]["features"] = {
            "name": "features", "channels": FEATURES, "layout": features
        }  # fmt: skip
        fields["refiner"]["inputs"] = ("rgb", "features")
        outputs.append(GraphTensor("features", ["b", "f", "h", "w"], "float32"))
    spec = type(bundle.spec).model_validate(fields)
    inputs = [GraphTensor("image", [1, 3, "h", "w"], "float32")]
    return Contract(Bundle(bundle.folder, spec, ""), inputs, outputs)


def random_maps(channels: int, *size: int, layout: str = "NCHW") -> Tensor:
    maps = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(channels))
    return maps if layout == "NCHW" else maps.permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_equals_what_comes_down(tiny_bundle: Path, layout: str, stride: int, kind: str) -> None:
    contract = make_contract(tiny_bundle, features=layout, layout=layout, stride=stride, kind=kind)
    raw = random_maps(CLASSES, SIZE[0] // stride, SIZE[1] // stride, layout=layout)
    if kind == "probabilities":
        raw = raw.softmax(1 if layout == "NCHW" else 3)
    features = random_maps(FEATURES, 6, 7, layout=layout)
    expected = contract.dense_outputs([raw.clone().numpy(), features.numpy()], IMAGES)[0]
    found = contract.device_outputs([raw, features], IMAGES)[0]
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert found.features is not None
    assert expected.features is not None
    assert torch.equal(found.features, expected.features)
    assert found.logits.is_contiguous()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_pictures_of_a_batch_are_as_if_alone(tiny_bundle: Path, layout: str, kind: str) -> None:
    contract = make_contract(tiny_bundle, features=layout, layout=layout, stride=2, kind=kind)
    batch = [
        [
            random_maps(CLASSES, 6, 10, layout=layout).roll(shift, 2).abs(),
            random_maps(FEATURES, 3, 5, layout=layout).roll(shift, 2),
        ]
        for shift in range(3)
    ]
    alone = [contract.device_outputs(raw, IMAGES)[0] for raw in batch]
    raw = [torch.cat(parts) for parts in zip(*batch, strict=True)]
    on_gpu = contract.device_outputs(raw, 3 * IMAGES)
    on_cpu = contract.dense_outputs([part.numpy() for part in raw], 3 * IMAGES)
    for expected, *found in zip(alone, on_gpu, on_cpu, strict=True):
        for each in found:
            torch.testing.assert_close(each.logits, expected.logits, rtol=1e-5, atol=1e-5)
            assert each.features is not None
            assert expected.features is not None
            assert torch.equal(each.features, expected.features)
    with pytest.raises(ModelOutputError, match=r"expected dense output \[2, 3, h / 2"):
        contract.device_outputs(raw, 2 * IMAGES)


def test_half_precision_becomes_float32(tiny_bundle: Path) -> None:
    raw = random_maps(CLASSES, *SIZE).half()
    found = make_contract(tiny_bundle, stride=1).device_outputs([raw], IMAGES)[0]
    assert found.logits.dtype == torch.float32
    assert torch.equal(found.logits, raw[0].float())


Take = Callable[[Contract, Tensor], object]
TAKES: dict[str, Take] = {
    "down": lambda contract, raw: contract.dense_outputs([raw.numpy()], IMAGES),
    "on a GPU": lambda contract, raw: contract.device_outputs([raw], IMAGES),
}


@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
class TestKind:
    """A model whose output is of another kind than its bundle says runs, and is of no use."""

    def test_logits_for_probabilities(self, tiny_bundle: Path, take: Take) -> None:
        contract = make_contract(tiny_bundle, stride=1, kind="probabilities")
        for _ in range(2):
            with pytest.raises(
                ModelOutputError, match=r"got -\d.*; set dense\.output\.kind: logits"
            ):
                take(contract, random_maps(CLASSES, *SIZE))
        take(contract, random_maps(CLASSES, *SIZE).softmax(1))

    def test_probabilities_for_logits(
        self, tiny_bundle: Path, take: Take, caplog: pytest.LogCaptureFixture
    ) -> None:
        contract = make_contract(tiny_bundle, stride=1)
        for _ in range(2):
            take(contract, random_maps(CLASSES, *SIZE).softmax(1).half().float())
        (told,) = caplog.messages
        assert "set dense.output.kind: probabilities" in told

    def test_what_is_right_is_not_remarked(
        self, tiny_bundle: Path, take: Take, caplog: pytest.LogCaptureFixture
    ) -> None:
        take(make_contract(tiny_bundle, stride=1), random_maps(CLASSES, *SIZE))
        take(make_contract(tiny_bundle, stride=1), random_maps(CLASSES, *SIZE).abs())
        probabilities = make_contract(tiny_bundle, stride=1, kind="probabilities")
        take(probabilities, random_maps(CLASSES, *SIZE).softmax(1))
        labels = (100.0 * random_maps(CLASSES, *(side // 2 for side in SIZE))).softmax(1)
        enlarged = F.interpolate(labels, SIZE, mode="bicubic")
        assert enlarged.amin() < -0.05
        take(make_contract(tiny_bundle, stride=1, kind="probabilities"), enlarged)
        assert not caplog.messages


def test_an_output_in_the_other_layout(tiny_bundle: Path) -> None:
    contract = make_contract(tiny_bundle, stride=1)
    with pytest.raises(ModelOutputError, match=r"looks like NHWC: set dense\.output\.layout: NHWC"):
        contract.device_outputs([random_maps(CLASSES, *SIZE, layout="NHWC")], IMAGES)


@pytest.mark.parametrize(("std", "told"), [((0.229, 0.224, 0.225), True), ((1.0, 1.0, 1.0), False)])
def test_statistics_on_the_other_scale(
    tiny_bundle: Path,
    std: tuple[float, ...],
    told: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = Bundle.open(tiny_bundle)
    fields = bundle.spec.model_dump()
    fields["dense"]["input"] |= {"std": std}
    spec = type(bundle.spec).model_validate(fields)
    inputs = [GraphTensor("image", [1, 3, "h", "w"], "float32")]
    outputs = [GraphTensor("logits", ["b", 3, "h", "w"], "float32")]
    Contract(Bundle(bundle.folder, spec, ""), inputs, outputs)
    assert ("multiply mean and std by 255" in caplog.text) == told


def test_a_second_input(tiny_bundle: Path) -> None:
    inputs = [GraphTensor(name, [1, 3, "h", "w"], "float32") for name in ("image", "mask")]
    outputs = [GraphTensor("logits", ["b", 3, "h", "w"], "float32")]
    bundle = Bundle.open(tiny_bundle)
    spec = bundle.spec.model_dump()
    spec["dense"]["input"]["name"], spec["dense"]["output"]["name"] = "image", "logits"
    bundle = Bundle(bundle.folder, type(bundle.spec).model_validate(spec), "")
    Contract(bundle, inputs[:1], outputs)
    with pytest.raises(BundleError, match="only input, got mask beside image"):
        Contract(bundle, inputs, outputs)


class TestUnusable:
    def test_shapes(self, tiny_bundle: Path) -> None:
        contract = make_contract(tiny_bundle, stride=2)
        with pytest.raises(ModelOutputError, match=r"expected dense output \[1, 3, h / 2"):
            contract.device_outputs([random_maps(4, 6, 10)], IMAGES)
        with pytest.raises(ModelOutputError, match=r"12 x 20 / 2, got 12 x 20"):
            contract.device_outputs([random_maps(3, *SIZE)], IMAGES)

    def test_features(self, tiny_bundle: Path) -> None:
        contract = make_contract(tiny_bundle, stride=1, features="NCHW")
        with pytest.raises(ModelOutputError, match=r"expected dense features \[1, 5, rows"):
            contract.device_outputs([random_maps(3, *SIZE), random_maps(4, 6, 10)], IMAGES)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("where", [0, 1])
    def test_not_finite(self, tiny_bundle: Path, value: float, where: int) -> None:
        contract = make_contract(tiny_bundle, stride=1, features="NCHW")
        raw = [random_maps(3, *SIZE), random_maps(5, 6, 10)]
        raw[where][0, 0, 0, 0] = value
        with pytest.raises(ModelOutputError, match="returned NaN or infinity"):
            contract.device_outputs(raw, IMAGES)
