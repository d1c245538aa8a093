# SPDX-License-Identifier: Apache-2.0
"""Batch norm over rows with its ReLU on the compiled kernels, for training on the CPU.

Shape legend: N rows; C channels, a multiple of 16. Everything is float32 and contiguous.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from sparserefine_ros.kernels.library import Kernels, address, integer

# Rows whose mean is taken for about that of all.
_PIVOT_ROWS: Final = 256


class NormReLU(torch.autograd.Function):
    """y = max(0, weight * (x - mean) / sqrt(variance + eps) + bias), moments over the rows.

    Also returns the mean and the biased variance, [C] each, which carry no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, kernels: Kernels
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise x [N, C] with weight and bias [C]."""
        count, channels = x.shape
        # Sums of differences from about the mean lose no digits to it; one row may lie far off.
        pivot, parts = x[:: -(-count // _PIVOT_ROWS)].mean(0), torch.get_num_threads()
        sums = torch.zeros(parts, 2, channels, dtype=torch.float64)
        kernels.call.sr_norm_moments(
            address(x), address(pivot), *map(integer, (count, channels)),
            address(sums), integer(parts),
        )  # fmt: skip
        first, second = sums.sum(0) / count
        mean = (pivot + first).float()
        variance = (second - first * first).clamp_min(0.0).float()
        scale = weight / torch.sqrt(variance + eps)
        shift = bias - mean * scale
        y = torch.empty_like(x)
        kernels.call.sr_norm_apply(
            address(x), address(scale), address(shift), *map(integer, (count, channels)),
            address(y), integer(parts),
        )  # fmt: skip
        ctx.save_for_backward(x, y, mean, variance, weight)
        ctx.eps, ctx.kernels = eps, kernels
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of x, weight and bias."""
        x, y, mean, variance, weight = ctx.saved_tensors
        kernels: Kernels = ctx.kernels
        gradient = gradient.contiguous()
        (count, channels), parts = x.shape, torch.get_num_threads()
        sums = torch.zeros(parts, 2, channels, dtype=torch.float64)
        kernels.call.sr_norm_gradient_moments(
            address(x), address(y), address(gradient), address(mean),
            *map(integer, (count, channels)), address(sums), integer(parts),
        )  # fmt: skip
        total, product = sums.sum(0)
        inverse = torch.rsqrt(variance.double() + ctx.eps)
        scale = weight.double() * inverse
        slope = -scale * inverse * inverse * product / count
        offset = -scale * total / count - slope * mean
        coefficients = torch.stack([scale, slope, offset]).float()
        result = torch.empty_like(x)
        kernels.call.sr_norm_gradient(
            address(x), address(y), address(gradient), address(coefficients),
            *map(integer, (count, channels)), address(result), integer(parts),
        )  # fmt: skip
        return result, (product * inverse).float(), total.float(), None, None
