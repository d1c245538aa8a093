# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from sparserefine_ros.kernels.library import Kernels
from sparserefine_ros.kernels.normalise import NormReLU


@pytest.mark.parametrize("count", [2, 255, 257, 100_000])
def test_variance_of_rows_whose_first_lies_far_off(count: int, kernels: Kernels) -> None:
    x = torch.randn(count, 16, generator=torch.Generator().manual_seed(1)) + 3.0
    x[0] = 1e4
    _, mean, variance = NormReLU.apply(x, torch.ones(16), torch.zeros(16), 1e-5, kernels)
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean(0), rtol=1e-5, atol=0.0)
    expected = exact.var(0, correction=0)
    # Float32 carries seven digits, of which the sum over a chunk of rows takes one.
    torch.testing.assert_close(variance.double(), expected, rtol=1e-5, atol=0.0)
