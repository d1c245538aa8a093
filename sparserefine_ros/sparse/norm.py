# SPDX-License-Identifier: Apache-2.0
"""Batch norm over the active sites, with its ReLU.

Shape legend: N sites of a level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.kernels.convolution import LANES
from sparserefine_ros.kernels.library import Kernels, compiled_kernels
from sparserefine_ros.kernels.normalise import NormReLU


class SiteNorm(nn.BatchNorm1d):
    """Batch norm over the sites, then ReLU; statistics stand still when fewer than two came."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels] -> [N, channels], not negative."""
        batch = self.training and x.shape[0] > 1
        kernels = _kernels_for(x) if batch else None
        if kernels is not None:
            return self._compiled(x.contiguous(), kernels)
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, batch,
            self.momentum or 0.0, self.eps,
        )  # fmt: skip
        return F.relu(y)

    def _compiled(self, x: Tensor, kernels: Kernels) -> Tensor:
        y, mean, variance = NormReLU.apply(x, self.weight, self.bias, self.eps, kernels)  # type: ignore[no-untyped-call]
        assert self.running_mean is not None
        assert self.running_var is not None
        count, momentum = x.shape[0], self.momentum or 0.0
        with torch.no_grad():
            self.running_mean.lerp_(mean, momentum)
            # The running variance is the unbiased one, as in PyTorch.
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        return y  # type: ignore[no-any-return]

    def folded(self) -> tuple[Tensor, Tensor]:
        """Scale and shift [channels] that do, with the running statistics, what the norm does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight.detach() / torch.sqrt(self.running_var + self.eps)
        return scale, self.bias.detach() - self.running_mean * scale


def _kernels_for(x: Tensor) -> Kernels | None:
    suits = x.dtype == torch.float32 and x.device.type == "cpu" and x.shape[1] % LANES == 0
    return compiled_kernels() if suits else None
