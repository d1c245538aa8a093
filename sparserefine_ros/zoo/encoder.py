# SPDX-License-Identifier: Apache-2.0
"""What every encoder of the zoo is.

Shape legend: B batch; h, w input size. Tensors are [B, channels, rows, columns].
"""

from __future__ import annotations

from torch import Tensor, nn

from sparserefine_ros.image import Normalisation


class Encoder(nn.Module):
    """Turns a picture into features of falling resolution.

    Attributes:
        widths: channels of the levels at strides 2, 4, 8, ...
        normalisation: what it expects of its input.
    """

    widths: tuple[int, ...]
    normalisation: Normalisation

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image float [B, 3, h, w] -> one level for each of `widths`."""
        raise NotImplementedError


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; padded to keep size / stride, rounded up."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
