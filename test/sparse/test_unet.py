# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from conftest import random_statistics
from oracle import DenseUNet, example_masks, grid_of, grid_to_rows, rows_to_grid, sites_of
from torch import Tensor

from sparserefine_ros.sparse.norm import SiteNorm
from sparserefine_ros.sparse.plan import Bounds, build_plan
from sparserefine_ros.sparse.unet import SparseUNet

MASKS = example_masks()
INPUTS, CLASSES = 4, 3


def make_unet(widths: tuple[int, ...] = (4, 6, 5), blocks: int = 2) -> SparseUNet:
    torch.manual_seed(21)
    unet = SparseUNet(INPUTS, CLASSES, widths=widths, blocks=blocks).double()
    random_statistics(unet)
    return unet


def make_features(mask: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(22)
    return torch.randn(int(mask.sum()), INPUTS, generator=generator, dtype=torch.float64)


def named_tensors(unet: SparseUNet) -> dict[str, Tensor]:
    return {**dict(unet.named_parameters()), **dict(unet.named_buffers())}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("bounds", ["image", "data"])
@pytest.mark.parametrize("name", MASKS)
def test_equals_masked_dense_convolutions(name: str, bounds: Bounds, training: bool) -> None:
    mask, unet = MASKS[name], make_unet().train(training)
    # The oracle reads the statistics as they are before the training step moves them.
    weights = {key: value.detach().clone() for key, value in named_tensors(unet).items()}
    for key, parameter in weights.items():
        parameter.requires_grad_("running" not in key and parameter.is_floating_point())
    features = make_features(mask).requires_grad_()
    twin = features.detach().clone().requires_grad_()
    plan = build_plan(sites_of(mask), grid_of(mask), unet.depth, bounds=bounds)
    logits = unet(features, plan)
    grid = DenseUNet(weights, bounds, training=training)(rows_to_grid(twin, mask), mask)
    expected = grid_to_rows(grid, mask)
    assert logits.shape == (int(mask.sum()), CLASSES)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)

    probe = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).double()
    (logits * probe).sum().backward()
    (expected * probe).sum().backward()
    torch.testing.assert_close(features.grad, twin.grad, rtol=1e-7, atol=1e-8)
    for key, parameter in unet.named_parameters():
        reference = weights[key].grad
        found = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        wanted = reference if reference is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-8, msg=lambda m: f"{key}: {m}")  # noqa: B023


def test_every_parameter_matters_on_a_usual_mask() -> None:
    mask, unet = MASKS["odd"], make_unet().train()
    unet(
        make_features(mask), build_plan(sites_of(mask), grid_of(mask), 3)
    ).square().sum().backward()
    idle = [
        key
        for key, parameter in unet.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert idle == []


@pytest.mark.parametrize(
    ("widths", "blocks"), [((5,), 1), ((4, 7), 1), ((3, 4, 5, 6), 1), ((4,), 3)]
)
def test_any_number_of_levels_and_blocks(widths: tuple[int, ...], blocks: int) -> None:
    mask, unet = MASKS["even"], make_unet(widths, blocks).eval()
    plan = build_plan(sites_of(mask), grid_of(mask), len(widths))
    features = make_features(mask)
    expected = DenseUNet(named_tensors(unet), "image", training=False)(
        rows_to_grid(features, mask), mask
    )
    torch.testing.assert_close(unet(features, plan), grid_to_rows(expected, mask))


def test_batch_is_the_pictures_one_by_one_in_evaluation() -> None:
    mask, unet = MASKS["batch"], make_unet().eval()
    features = make_features(mask)
    together = unet(features, build_plan(sites_of(mask), grid_of(mask), 3))
    counts = mask.sum((1, 2, 3)).tolist()
    parts = [
        unet(rows, build_plan(sites_of(mask[i : i + 1]), (1, *grid_of(mask)[1:]), 3))
        for i, rows in enumerate(features.split(counts))
    ]
    torch.testing.assert_close(together, torch.cat(parts))


@pytest.mark.parametrize(
    ("levels", "millions"), [(6, 79.33), (5, 19.81), (4, 4.93)], ids=["6", "5", "4"]
)
def test_parameter_counts_of_the_paper(levels: int, millions: float) -> None:
    with torch.device("meta"):
        unet = SparseUNet(3, 19, widths=[32 << level for level in range(levels)])
    head = sum(parameter.numel() for parameter in unet.head.parameters())
    assert head == 32 * 19 + 19
    total = sum(parameter.numel() for parameter in unet.parameters())
    assert round((total - head) / 1e6, 2) == millions


@pytest.mark.parametrize("sites", [0, 1])
def test_norm_statistics_stand_still_below_two_sites(sites: int) -> None:
    norm = SiteNorm(2).train()
    with torch.no_grad():
        norm(torch.randn(6, 2, generator=torch.Generator().manual_seed(1)) + 3)
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    assert (before > 0).all()
    assert norm(torch.full((sites, 2), 9.0)).shape == (sites, 2)
    assert torch.equal(norm.running_mean, before)


def test_norm_statistics_move_as_batch_norm_does() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) * 2 + 1
    norm = SiteNorm(3).train()
    norm(x)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.var(0))
