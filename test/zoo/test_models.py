# SPDX-License-Identifier: Apache-2.0
"""Every network by name; sizes against the published ones."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.zoo.costs import count_networks
from sparserefine_ros.zoo.models import MODELS, build_model

pytest.importorskip("transformers")

SIZES = {"low": (512, 1024), "full": (1024, 2048)}


@pytest.mark.parametrize("name", MODELS)
def test_shapes_are_as_declared(name: str) -> None:
    with FakeTensorMode():
        network = build_model(name, 7)
        assert not network.training
        height, width = 2 * network.multiple_of, 4 * network.multiple_of
        with torch.no_grad():
            found = network(torch.empty(1, 3, height, width))
    stride = network.output_stride
    assert found.shape == (1, 7, height // stride, width // stride)
    assert network.normalisation.channel_order == "RGB"


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigurationError, match=r"of ladder-lite0, hrnet-w48, .* got 'resnet'"):
        build_model("resnet", 7)


@pytest.mark.parametrize(
    ("name", "millions", "low_gmacs", "full_gmacs"),
    [
        # Paper, table 1; MACs measured with FlopCounterMode on independent implementations.
        ("hrnet-w48", 65.9, 187, 748),
        ("segformer-b5", 82.0, 169, 1162),
        # MACs of rank 16; an implementation with rank 64 measured 138 and 553.
        ("segnext-l", 48.8, 131, 523),
    ],
)
def test_published_sizes(name: str, millions: float, low_gmacs: int, full_gmacs: int) -> None:
    costs = count_networks(name, list(SIZES.values()), classes=19)
    low, full = costs[SIZES["low"]], costs[SIZES["full"]]
    assert low.parameters == pytest.approx(1e6 * millions, rel=0.01)
    assert low.macs == pytest.approx(1e9 * low_gmacs, rel=0.005)
    assert full.macs == pytest.approx(1e9 * full_gmacs, rel=0.005)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("b0", 3.7), ("b1", 13.7), ("b2", 24.7), ("b3", 44.6), ("b4", 61.4), ("b5", 82.0)],
)
def test_segformers_of_mmsegmentation(name: str, millions: float) -> None:
    """Encoders of 3.3, 13.1, 24.2, 44.0, 60.8 and 81.4 M, and a head of 256 channels."""
    cost = count_networks(f"segformer-{name}", [(64, 64)], classes=19)[64, 64]
    assert cost.parameters == pytest.approx(1e6 * millions, rel=0.01)


def parameters_of(name: str, depth: int) -> Counter[str]:
    """Of a network, by the first `depth` parts of their names."""
    with FakeTensorMode():
        network = build_model(name, 19)
    parts: Counter[str] = Counter()
    for key, parameter in network.named_parameters():
        parts[".".join(key.split(".")[:depth])] += parameter.numel()
    return parts


@pytest.mark.parametrize(("name", "swin"), [("mask2former-t", 27.5), ("mask2former-l", 195.2)])
def test_parts_of_mask2former(name: str, swin: float) -> None:
    backbone = sum(n for key, n in parameters_of(name, 3).items() if ".encoder" in key)
    # Sizes of Swin-T and Swin-L as published, without their classifier.
    assert backbone == pytest.approx(1e6 * swin, rel=0.002)
    layers = parameters_of(name, 4)["model.transformer_module.decoder.layers"]
    # Nine layers: two attentions of four matrices, an MLP of 2048, three norms.
    assert layers == 9 * (2 * 4 * (256 * 256 + 256) + 2 * 256 * 2048 + 2048 + 256 + 3 * 512)
