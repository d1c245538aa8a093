# SPDX-License-Identifier: Apache-2.0
"""Building blocks that several networks of the zoo share.

Shape legend: B batch. Tensors are [B, channels, rows, columns].
"""

from __future__ import annotations

from typing import Final, Literal

from torch import Tensor, nn
from torch.nn import functional as F

_GROUPS: Final = 32


def resize_like(x: Tensor, reference: Tensor) -> Tensor:
    """Bilinear resize of `x` to the rows and columns of `reference`."""
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=False)


class PointwiseConv(nn.Module):
    """1x1 convolution, norm and ReLU, each optional but the first; named as MMSegmentation does.

    Args:
        inputs, outputs: channels.
        norm: "bn" batch norm, "gn" group norm of 32 groups, None for a bias instead.
        relu: whether a ReLU follows.
    """

    def __init__(
        self, inputs: int, outputs: int, *, norm: Literal["bn", "gn"] | None, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=norm is None)
        if norm == "bn":
            self.bn = nn.BatchNorm2d(outputs)
        elif norm == "gn":
            self.gn = nn.GroupNorm(_GROUPS, outputs)
        self._norm, self._relu = norm, relu

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, rows, columns] -> [B, outputs, rows, columns]."""
        x = self.conv(x)
        if self._norm is not None:
            x = getattr(self, self._norm)(x)
        return F.relu(x) if self._relu else x
