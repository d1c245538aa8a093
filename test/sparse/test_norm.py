# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.sparse.norm import SiteNorm

pytestmark = pytest.mark.usefixtures("engine")


def make(channels: int) -> tuple[SiteNorm, nn.BatchNorm1d]:
    """The norm and PyTorch's in double precision, with the same weights and statistics."""
    generator = torch.Generator().manual_seed(channels)
    norm, reference = SiteNorm(channels), nn.BatchNorm1d(channels)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        tensor.data.uniform_(0.3, 1.5, generator=generator)
    reference.load_state_dict(norm.state_dict())
    return norm, reference.double()


def rows(count: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    # Spread, so that two rows are never nearly equal, around a mean that is not zero.
    spread = torch.linspace(-4.0, 4.0, count)[:, None]
    return torch.randn(count, channels, generator=generator) * 0.5 + spread + 10.0


@pytest.mark.parametrize("count", [3, 512, 5000])
@pytest.mark.parametrize("channels", [16, 48, 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_equals_batch_norm_and_relu(count: int, channels: int, threads: int) -> None:
    norm, reference = make(channels)
    x = rows(count, channels).requires_grad_()
    exact = x.detach().double().requires_grad_()
    weights = torch.randn(count, channels, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = norm(x)
        (y * weights).sum().backward()
    finally:
        torch.set_num_threads(before)
    expected = F.relu(reference(exact))
    (expected * weights).sum().backward()
    # Seven digits in the inputs, of which the mean takes one.
    tolerance = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(y.double(), expected, **tolerance)
    for found, wanted in (
        (x.grad, exact.grad),
        (norm.weight.grad, reference.weight.grad),
        (norm.bias.grad, reference.bias.grad),
        (norm.running_mean, reference.running_mean),
        (norm.running_var, reference.running_var),
    ):
        assert found is not None
        assert wanted is not None
        scale = float(wanted.abs().max()) + 1e-6
        torch.testing.assert_close(found.double() / scale, wanted / scale, **tolerance)


@pytest.mark.parametrize("training", [False, True])
def test_one_site_uses_the_running_statistics(training: bool) -> None:
    norm, reference = make(16)
    x = rows(1, 16)
    expected = F.relu(reference.eval()(x.double())).float()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    torch.testing.assert_close(norm.train(training)(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_what_is_no_number_stays_so() -> None:
    norm, _ = make(16)
    x = rows(40, 16)
    x[3, 5] = float("nan")
    found = norm(x).isnan()
    assert found[:, 5].all()
    assert found.sum() == 40


def test_equal_rows_give_the_bias() -> None:
    norm, _ = make(16)
    y = norm(torch.full((40, 16), 2.0))
    torch.testing.assert_close(y, norm.bias.expand(40, 16), rtol=1e-4, atol=1e-4)
