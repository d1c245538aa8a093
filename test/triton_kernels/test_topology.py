# SPDX-License-Identifier: Apache-2.0
"""Plans built by the kernels against `build_plan`, which `test_plan` holds to the definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from oracle import example_masks, grid_of, sites_of
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: pip install triton (Linux, x86-64)")

from sparserefine_ros.errors import BackendError
from sparserefine_ros.selection import expand_map
from sparserefine_ros.sparse.plan import Bounds, SparsePlan, build_plan
from sparserefine_ros.triton_kernels.topology import plan_from_mask

MASKS = example_masks()


def leaves(record: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested records by its name, but what follows from the rest."""
    if is_dataclass(record):
        for part in fields(record):
            if part.compare:
                yield from leaves(getattr(record, part.name), f"{at}.{part.name}")
    elif isinstance(record, tuple):
        for i, part in enumerate(record):
            yield from leaves(part, f"{at}[{i}]")
    else:
        yield at, record


def assert_same(found: SparsePlan, expected: SparsePlan) -> None:
    left, right = dict(leaves(found)), dict(leaves(expected))
    assert list(left) == list(right)
    for name, value in right.items():
        if isinstance(value, Tensor):
            assert left[name].dtype == value.dtype, name
            assert left[name].tolist() == value.tolist(), name
        else:
            assert left[name] == value, name


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        *((name, "image") for name in MASKS),
        ("odd", "data"), ("batch-half-empty", "data"), ("inner-block", "data"), ("empty", "data"),
        ("one-middle", "data"), ("one-column", "data"), ("three-by-three", "data"),
    ],
)  # fmt: skip
def test_equals_the_plan_of_the_cpu(name: str, bounds: Bounds, device: torch.device) -> None:
    mask = MASKS[name]
    found = plan_from_mask(mask[:, 0].to(device), 3, bounds=bounds)
    assert_same(found, build_plan(sites_of(mask), grid_of(mask), 3, bounds=bounds))


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_any_number_of_levels(depth: int, device: torch.device) -> None:
    mask = MASKS["odd"]
    found = plan_from_mask(mask[:, 0].to(device), depth)
    assert_same(found, build_plan(sites_of(mask), grid_of(mask), depth))


@pytest.mark.parametrize("full_size", [(26, 34), (31, 29), (13, 40), (9, 8)], ids=str)
def test_low_resolution_mask_is_expanded(full_size: tuple[int, int], device: torch.device) -> None:
    mask = MASKS["odd"][:, 0]
    expanded = torch.from_numpy(expand_map(mask.numpy(), full_size))[:, None]
    found = plan_from_mask(mask.to(device), 2, full_size=full_size)
    assert_same(found, build_plan(sites_of(expanded), grid_of(expanded), 2))


def test_a_strided_mask(device: torch.device) -> None:
    mask = MASKS["batch"][:, 0]
    wide = torch.zeros(3, 9, 22, dtype=torch.bool, device=device)
    wide[:, :, ::2] = mask.to(device)
    assert_same(
        plan_from_mask(wide[:, :, ::2], 2),
        build_plan(sites_of(mask[:, None]), grid_of(mask[:, None]), 2),
    )


@pytest.mark.parametrize("bounds", ["image", "data"])
def test_waits_for_the_gpu_once(
    bounds: Bounds, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the operations that read values back to the host."""
    mask = MASKS["odd"][:, 0].to(device)
    plan_from_mask(mask, 4, bounds=bounds)  # constants of this size are made once
    waits: list[str] = []
    for name in ("tolist", "item", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__index__"):
        plain = getattr(Tensor, name)

        def counted(self: Tensor, *rest: Any, _plain: Any = plain, _name: str = name) -> Any:
            waits.append(_name)
            return _plain(self, *rest)

        monkeypatch.setattr(Tensor, name, counted)
    plan_from_mask(mask, 4, bounds=bounds)
    assert waits == ["tolist"]


@pytest.mark.parametrize(
    "mask", [torch.zeros(1, 4, 4), torch.zeros(4, 4, dtype=torch.bool)], ids=["float", "2-D"]
)
def test_refuses_other_masks(mask: Tensor) -> None:
    with pytest.raises(BackendError, match=r"expected a mask bool \[B, h, w\], got torch\."):
        plan_from_mask(mask, 2)


def test_refuses_more_cells_than_int32_counts() -> None:
    mask = torch.zeros(1, 1, 1, dtype=torch.bool)
    with pytest.raises(BackendError, match="32-bit indices can number, got 1 x 40000 x 40000"):
        plan_from_mask(mask, 1, full_size=(40000, 40000))
