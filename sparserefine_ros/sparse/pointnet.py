# SPDX-License-Identifier: Apache-2.0
"""PointNet on selected pixels: each pixel alone, then with what stands out in its whole picture.

Qi et al., "PointNet", CVPR 2017; the comparison of SparseRefine's table 5d. It knows no neighbours.

Shape legend: B pictures; N sites. Features are float32 [N, channels], rows in the order of sites.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparserefine_ros.sparse.norm import SiteNorm
from sparserefine_ros.sparse.plan import SparsePlan


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), SiteNorm(outputs))


class PointNet(nn.Module):
    """Shared layers on every pixel, a maximum over each picture, and a linear head.

    Args:
        inputs: features per pixel.
        classes: C.
        widths: channels of the layers before the maximum.
    """

    def __init__(self, inputs: int, classes: int, *, widths: Sequence[int]) -> None:
        super().__init__()
        self.alone = nn.Sequential(
            *(_layer(a, b) for a, b in itertools.pairwise((inputs, *widths)))
        )
        self.joined = _layer(2 * widths[-1], widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, features: Tensor, plan: SparsePlan) -> Tensor:
        """Features [N, inputs] of the plan's finest sites -> logits [N, C]."""
        x = self.alone(features)
        level = plan.levels[0]
        batch, height, width = level.grid
        picture = torch.div(level.sites, max(1, height * width), rounding_mode="floor")
        # The features are not negative, so zero is a maximum that changes nothing.
        largest = x.new_zeros(batch, x.shape[1]).scatter_reduce(
            0, picture[:, None].expand_as(x), x, "amax"
        )
        joined = self.joined(torch.cat([x, largest.index_select(0, picture)], 1))
        return self.head(joined)  # type: ignore[no-any-return]
