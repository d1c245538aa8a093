# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import grid_of, sites_of

from sparserefine_ros.kernels.autograd import weight_gradient
from sparserefine_ros.kernels.library import Kernels
from sparserefine_ros.sparse.plan import build_plan


@pytest.mark.parametrize(("rows", "parts"), [(0, 1), (512, 1), (513, 2), (2600, 4)])
def test_no_more_parts_than_chunks_of_rows(
    rows: int, parts: int, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On four threads; each part takes memory for all weights."""
    level = build_plan(torch.arange(rows), (1, 60, 60), 1).levels[0]
    (gather,) = level.same.forward
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(rows, 3, generator=generator)
    gradients = torch.randn(rows, 5, generator=generator)
    plain, seen = kernels.call.sr_weight_gradient, []

    def watched(call: Any) -> None:
        seen.append(call._obj.threads)
        plain(call)

    monkeypatch.setattr(kernels.call, "sr_weight_gradient", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = weight_gradient(kernels, features, gradients, gather)
    finally:
        torch.set_num_threads(before)
    assert seen == [parts]
    inputs = torch.cat([features, torch.zeros(1, 3)])[gather.table.long()]
    # Sums of up to 2600 products in float32.
    expected = torch.einsum("mti,mo->tio", inputs, gradients)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("channels", [(3, 5), (16, 16), (21, 48), (40, 33)], ids=str)
@pytest.mark.parametrize("part", ["same", "down", "up"])
def test_gradient_of_the_weights(
    part: str, channels: tuple[int, int], each_kernels: Kernels
) -> None:
    """Many links are missing; upwards, a gather has some of the rows."""
    generator = torch.Generator().manual_seed(7)
    mask = torch.rand(2, 1, 53, 47, generator=generator) < 0.4
    level, below = build_plan(sites_of(mask), grid_of(mask), 2).levels
    assert level.down is not None
    gathers = {"same": level.same.forward, "down": level.down.forward, "up": level.down.backward}
    inputs, outputs = (below, level) if part == "up" else (level, below)
    features = torch.randn(inputs.count, channels[0], generator=generator)
    count = inputs.count if part == "same" else outputs.count
    gradients = torch.randn(count, channels[1], generator=generator)
    for gather in gathers[part]:
        found = weight_gradient(each_kernels, features, gradients, gather)
        linked = torch.cat([features, torch.zeros(1, channels[0])])[gather.table.long()]
        rows = gradients if gather.rows is None else gradients[gather.rows]
        expected = torch.einsum("mti,mo->tio", linked.double(), rows.double()).float()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
