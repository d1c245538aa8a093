# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch

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
