# SPDX-License-Identifier: Apache-2.0
"""Hamburger: global context as a low-rank factorisation of the features.

Geng et al., "Is Attention Better Than Matrix Decomposition?", ICLR 2021, with non-negative matrix
factorisation X = D C' by multiplicative updates (Lee and Seung, NeurIPS 2000):

    C <- C * (X' D) / (C D' D),   D <- D * (X C) / (D C' C)

Shape legend: B batch; K channels; N pixels; R rank. X is [B, K, N], D is [B, K, R], C is [B, N, R].
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.zoo.convolution import PointwiseConv

# Of MMSegmentation's configurations.
RANK: Final = 16
_STEPS: Final = 7
_EPSILON: Final = 1e-6
_SEED: Final = 0


class NonNegativeFactorisation(nn.Module):
    """The rank-R approximation of non-negative features.

    The reference draws the first bases anew for each picture; here they are drawn once, so that a
    picture always gets the same result. They are no part of a checkpoint.

    Args:
        channels: K.
        rank: R.
    """

    def __init__(self, channels: int, rank: int = RANK) -> None:
        super().__init__()
        drawn = np.random.default_rng(_SEED).random((channels, rank), np.float32)
        drawn /= np.linalg.norm(drawn, axis=0)
        self.bases: Tensor
        self.register_buffer("bases", torch.tensor(drawn), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features, not negative, [B, K, rows, columns] -> the same shape."""
        # Sums over all pixels overflow float16.
        features = x.flatten(2).float()
        transposed = features.transpose(1, 2)
        bases = self.bases.float().expand(x.shape[0], -1, -1)
        codes = F.softmax(transposed @ bases, -1)
        for _ in range(_STEPS):
            codes = _update(codes, transposed @ bases, bases)
            bases = _update(bases, features @ codes, codes)
        codes = _update(codes, transposed @ bases, bases)
        return (bases @ codes.transpose(1, 2)).reshape(x.shape).to(x.dtype)


def _update(factor: Tensor, numerator: Tensor, other: Tensor) -> Tensor:
    """One multiplicative update of `factor` while `other` stands still."""
    return factor * numerator / (factor @ (other.transpose(1, 2) @ other) + _EPSILON)


class Hamburger(nn.Module):
    """Factorisation between two 1x1 convolutions, with a shortcut."""

    def __init__(self, channels: int, rank: int = RANK) -> None:
        super().__init__()
        self.ham_in = PointwiseConv(channels, channels, norm=None)
        self.ham = NonNegativeFactorisation(channels, rank)
        self.ham_out = PointwiseConv(channels, channels, norm="gn", relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, K, rows, columns] -> the same shape, not negative."""
        return F.relu(x + self.ham_out(self.ham(self.ham_in(x))))
