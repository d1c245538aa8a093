# SPDX-License-Identifier: Apache-2.0
"""Fused kernels against the definitions in NumPy (float64) and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: pip install triton (Linux, x86-64)")

from sparserefine_ros.ensemble import GatedEnsembler
from sparserefine_ros.errors import ModelOutputError
from sparserefine_ros.records import Uncertainty
from sparserefine_ros.triton_kernels.fusion import TritonGate, measure_uncertainty

# Largest errors of a float32 softmax over up to 256 classes.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(found: Uncertainty, logits: Tensor, close: dict[str, float] = CLOSE) -> None:
    """Against the reference's definition on logits [N, C]."""
    x = logits.double().cpu().numpy()
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    entropy = -(p * np.log(np.maximum(p, 1e-5))).sum(1)
    assert found.labels.dtype == torch.uint8
    assert found.labels.flatten().tolist() == x.argmax(1).tolist()
    np.testing.assert_allclose(found.entropy.flatten().cpu(), entropy, **close)
    np.testing.assert_allclose(found.top_probability.flatten().cpu(), p.max(1), **close)


@pytest.mark.parametrize("spread", [0.0, 2.0, 20.0, 1e4])
@pytest.mark.parametrize("classes", [1, 2, 3, 19, 256])
def test_uncertainty(classes: int, spread: float, device: torch.device) -> None:
    logits = spread * randn(classes, 7, 11)
    found = measure_uncertainty(logits.to(device))
    assert found.entropy.shape == (7, 11)
    assert (found.entropy >= 0).all()
    check(found, logits.reshape(classes, -1).t())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_uncertainty_of_half_precision_and_of_views(
    dtype: torch.dtype, device: torch.device
) -> None:
    logits = randn(5, 6, 9).to(dtype)
    check(measure_uncertainty(logits.to(device)), logits.reshape(5, -1).t())
    last = logits.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    check(measure_uncertainty(last.to(device)), logits.reshape(5, -1).t())


def test_the_first_of_equal_classes_wins(device: torch.device) -> None:
    logits = torch.tensor([[1.0, 0.0], [3.0, 0.0], [3.0, -1.0]], device=device)[:, None]
    assert measure_uncertainty(logits).labels.tolist() == [[1, 0]]


def test_nothing_to_summarise(device: torch.device) -> None:
    assert measure_uncertainty(torch.zeros(4, 0, 5, device=device)).labels.shape == (0, 5)


def test_refuses_more_classes_than_labels_name() -> None:
    with pytest.raises(ModelOutputError, match=r"expected logits of 1 \.\. 256 classes, got 257"):
        measure_uncertainty(torch.zeros(257, 1, 1))
    with pytest.raises(ModelOutputError, match="got 257"):
        TritonGate(GatedEnsembler(257))


@pytest.mark.parametrize("count", [0, 1, 33, 70])
@pytest.mark.parametrize("classes", [1, 5, 19, 40, 64])
def test_gate(classes: int, count: int, device: torch.device) -> None:
    torch.manual_seed(4)
    ensembler = GatedEnsembler(classes).to(device)
    # Columns of a wider tensor, as engines return them.
    dense, refined = (
        (3 * randn(count, classes + 4, seed=seed)).to(device)[:, 1 : classes + 1] for seed in (1, 2)
    )
    fused = ensembler.double()(dense.double(), refined.double()).detach()
    # The logits themselves are sums of 64 float32 products.
    check(TritonGate(ensembler.float())(dense, refined), fused, {"rtol": 1e-4, "atol": 1e-5})


def test_gate_survives_extreme_logits(device: torch.device) -> None:
    torch.manual_seed(4)
    ensembler = GatedEnsembler(5).to(device)
    dense, refined = (torch.zeros(4, 5, device=device) for _ in range(2))
    # As a dense model with probabilities gives: log(1e-10) for all but one class, and worse.
    dense[1], dense[1, 2] = -23.0, 0.0
    refined[2, 1], refined[3, 0] = 90.0, -1e4
    fused = ensembler.double()(dense.double(), refined.double()).detach()
    check(TritonGate(ensembler.float())(dense, refined), fused, {"rtol": 1e-3, "atol": 1e-5})


def test_gate_is_a_copy(device: torch.device) -> None:
    torch.manual_seed(4)
    ensembler = GatedEnsembler(5).to(device)
    gate = TritonGate(ensembler)
    dense, refined = randn(9, 5, seed=1).to(device), randn(9, 5, seed=2).to(device)
    before = gate(dense, refined).entropy
    with torch.no_grad():
        for parameter in ensembler.parameters():
            parameter.zero_()
    assert torch.equal(gate(dense, refined).entropy, before)
