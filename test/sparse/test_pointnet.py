# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from conftest import random_statistics
from oracle import example_masks, grid_of, sites_of

from sparserefine_ros.sparse.plan import build_plan
from sparserefine_ros.sparse.pointnet import PointNet

MASKS = example_masks()


@pytest.mark.parametrize("name", MASKS)
def test_equals_the_definition_pixel_by_pixel(name: str) -> None:
    mask = MASKS[name]
    plan = build_plan(sites_of(mask), grid_of(mask), 1)
    torch.manual_seed(2)
    net = PointNet(4, 3, widths=(6, 8)).eval()
    random_statistics(net)
    features = torch.randn(plan.levels[0].count, 4)
    found = net(features, plan)
    assert found.shape == (len(features), 3)
    picture_of = [index[0] for index in mask[:, 0].nonzero().tolist()]
    alone = [net.alone(row[None])[0] for row in features]
    for row, picture in enumerate(picture_of):
        mates = [x for x, of in zip(alone, picture_of, strict=True) if of == picture]
        joined = torch.cat([alone[row], torch.stack(mates).amax(0)])
        expected = net.head(net.joined(joined[None]))[0]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns() -> None:
    mask = MASKS["batch"]
    plan = build_plan(sites_of(mask), grid_of(mask), 1)
    net = PointNet(4, 3, widths=(6, 8)).train()
    net(torch.randn(plan.levels[0].count, 4), plan).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
