# SPDX-License-Identifier: Apache-2.0
"""Gradients on Triton's kernels against PyTorch's of the dense oracle in float64."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from conftest import random_statistics
from oracle import (
    example_masks,
    grid_of,
    grid_to_rows,
    rows_to_grid,
    sites_of,
    strided,
    strided_mask,
    submanifold,
    transposed,
)
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: pip install triton (Linux, x86-64)")

from sparserefine_ros.errors import BackendError
from sparserefine_ros.kernels.library import TRITON, VARIABLE
from sparserefine_ros.sparse import convolve as module
from sparserefine_ros.sparse.convolve import convolve
from sparserefine_ros.sparse.plan import Links, build_plan
from sparserefine_ros.sparse.unet import SparseUNet
from sparserefine_ros.triton_kernels import gradient

MASKS = example_masks()

# Rms error over the rms of what is right.
LARGEST_ERROR = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Asks for the kernels and lists their calls, so that PyTorch cannot stand in for them."""
    monkeypatch.setenv(VARIABLE, TRITON)
    calls: list[str] = []
    for name in ("convolve_gathers", "weight_gradient"):
        plain = getattr(gradient, name)

        def counted(*arguments: Any, _plain: Any = plain, _name: str = name) -> Tensor:
            calls.append(_name)
            result: Tensor = _plain(*arguments)
            return result

        monkeypatch.setattr(gradient, name, counted)
    module._triton.cache_clear()
    yield calls  # type: ignore[misc]
    module._triton.cache_clear()


def randn(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Float64 numbers that `dtype` holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).double()


def on_grids(kind: str, x: Tensor, kernel: Tensor, mask: Tensor) -> Tensor:
    coarse = strided_mask(mask, "image")
    if kind == "stride 1":
        return grid_to_rows(submanifold(rows_to_grid(x, mask), mask, kernel), mask)
    if kind == "stride 2":
        return grid_to_rows(strided(rows_to_grid(x, mask), mask, kernel, "image"), coarse)
    return grid_to_rows(transposed(rows_to_grid(x, coarse), coarse, kernel, mask), mask)


def links_of(kind: str, mask: Tensor) -> Links:
    level = build_plan(sites_of(mask), grid_of(mask), 2).levels[0]
    assert level.down is not None
    kinds = {"stride 1": level.same, "stride 2": level.down, "transposed": level.down.reversed()}
    return kinds[kind]


@pytest.mark.parametrize("kind", ["stride 1", "stride 2", "transposed"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("odd-even-dense", torch.float32), ("one-first", torch.float32), ("empty", torch.float32),
        ("inner-block", torch.float16), ("inner-block", torch.bfloat16),
    ],
)  # fmt: skip
def test_gradients(
    name: str, kind: str, dtype: torch.dtype, device: torch.device, launches: list[str]
) -> None:
    mask = MASKS[name]
    links = links_of(kind, mask)
    x, kernel = randn(links.inputs, 7, seed=1, dtype=dtype), randn(9, 7, 18, seed=2, dtype=dtype)
    probe = randn(links.outputs, 18, seed=3, dtype=dtype)
    found, expected = (
        (x.to(device, dtype).requires_grad_(), kernel.to(device, dtype).requires_grad_()),
        (x.clone().requires_grad_(), kernel.clone().requires_grad_()),
    )
    convolve(*found, links.to(device)).backward(probe.to(device, dtype))
    (on_grids(kind, *expected, mask) * probe).sum().backward()
    assert launches == ["convolve_gathers"] * 2 + ["weight_gradient"] * len(links.forward)
    for tensor, twin in zip(found, expected, strict=True):
        assert tensor.grad is not None
        assert twin.grad is not None
        assert tensor.grad.dtype == dtype
        error = (tensor.grad.double().cpu() - twin.grad).square().mean().sqrt()
        if twin.grad.numel():
            assert error <= LARGEST_ERROR[dtype] * twin.grad.square().mean().sqrt()


def test_a_training_step_of_the_network(
    device: torch.device, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every gradient of the UNet in float32 as in float64 in PyTorch."""
    torch.manual_seed(31)
    unet = SparseUNet(4, 3, widths=(4, 6), blocks=1)
    random_statistics(unet)
    exact = SparseUNet(4, 3, widths=(4, 6), blocks=1).double()
    exact.load_state_dict(unet.state_dict())
    unet.to(device).train()
    mask = MASKS["inner-block"]
    plan = build_plan(sites_of(mask), grid_of(mask), unet.depth)
    features = randn(plan.levels[0].count, 4, seed=1, dtype=torch.float32)
    unet(features.to(device, torch.float32), plan.to(device)).square().sum().backward()
    assert launches.count("weight_gradient") == 5 + 2 + 4 + 1
    exact.train()(features, plan).square().sum().backward()
    for (name, found), expected in zip(unet.named_parameters(), exact.parameters(), strict=True):
        assert found.grad is not None
        torch.testing.assert_close(
            found.grad.double().cpu(), expected.grad, rtol=1e-3, atol=1e-3,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


def test_only_where_asked_for(
    device: torch.device, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    links = links_of("stride 1", MASKS["odd"]).to(device)
    convolve(
        torch.zeros(links.inputs, 4, device=device), torch.zeros(9, 4, 4, device=device), links
    )
    assert launches == []


def test_not_installed(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    plain = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "sparserefine_ros.triton_kernels":
            raise ImportError("No module named 'triton'")
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    links = links_of("stride 1", MASKS["odd"]).to(device)
    with pytest.raises(BackendError, match=r"SPARSEREFINE_KERNELS=triton .*pip install triton"):
        convolve(
            torch.zeros(links.inputs, 4, device=device), torch.zeros(9, 4, 4, device=device), links
        )
