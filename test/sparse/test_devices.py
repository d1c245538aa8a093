# SPDX-License-Identifier: Apache-2.0
"""Devices other than the CPU, by the one that every machine has: PyTorch's meta device.

It computes nothing, but refuses tensors of different devices where a GPU would.
"""

from __future__ import annotations

import pytest
import torch
from oracle import example_masks, grid_of, sites_of

from sparserefine_ros.errors import BackendError
from sparserefine_ros.sparse.engines import ENGINES, needs_cpu, open_engine
from sparserefine_ros.sparse.plan import SparsePlan, build_plan
from sparserefine_ros.sparse.pytorch import PyTorchUNet
from sparserefine_ros.sparse.unet import SparseUNet

ELSEWHERE = torch.device("meta")
INPUTS, CLASSES = 4, 3


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device has none, and PyTorch refuses to say so."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)


@pytest.fixture
def plan() -> SparsePlan:
    mask = example_masks()["odd"]
    return build_plan(sites_of(mask), grid_of(mask), 3)


@pytest.fixture
def unet() -> SparseUNet:
    return SparseUNet(INPUTS, CLASSES, widths=(4, 6, 5), blocks=1).to(ELSEWHERE)


def test_training(plan: SparsePlan, unet: SparseUNet) -> None:
    features = torch.zeros(plan.levels[0].count, INPUTS, device=ELSEWHERE)
    logits = unet(features, plan.to(ELSEWHERE))
    assert (logits.device, logits.shape) == (ELSEWHERE, (plan.levels[0].count, CLASSES))
    logits.sum().backward()
    assert all(parameter.grad.device == ELSEWHERE for parameter in unet.parameters())
    with pytest.raises(RuntimeError, match="same device"):
        unet(features, plan)


def test_auto(unet: SparseUNet) -> None:
    assert isinstance(open_engine("auto", unet, threads=1), PyTorchUNet)


@pytest.mark.parametrize("name", ["pytorch", "dense", "dense-bfloat16"])
def test_engines(name: str, plan: SparsePlan, unet: SparseUNet) -> None:
    engine = open_engine(name, unet.eval(), threads=1)
    features = torch.zeros(plan.levels[0].count, INPUTS, device=ELSEWHERE)
    assert engine(features, plan.to(ELSEWHERE)).device == ELSEWHERE


@pytest.mark.parametrize("name", [name for name in ENGINES if needs_cpu(name)])
def test_engines_of_the_cpu(name: str, unet: SparseUNet) -> None:
    with pytest.raises(BackendError, match=f"on the CPU for the sparse engine {name}, got them on"):
        open_engine(name, unet, threads=1)
