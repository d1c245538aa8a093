# SPDX-License-Identifier: Apache-2.0
"""A residual encoder trained from scratch.

Shape legend: B batch; h, w input size. Tensors are [B, channels, rows, columns].
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.bundle_spec import IMAGENET_MEAN, IMAGENET_STD
from sparserefine_ros.image import Normalisation
from sparserefine_ros.zoo.encoder import Encoder, conv_bn_relu


class BasicBlock(nn.Module):
    """ResNet's two-convolution block (He et al., 2016).

    A strided shortcut averages and then projects, as in ResNet-D (He et al., "Bag of Tricks for
    Image Classification", CVPR 2019). A strided 1x1 convolution would lose three pixels of four;
    besides, oneDNN 3.x writes past its buffers in the backward pass of a narrow one.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn_relu(inputs, outputs, stride=stride)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
            self.shortcut = nn.Sequential(
                pool if stride != 1 else nn.Identity(),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, rows, columns] -> [B, outputs, rows / stride, columns / stride]."""
        return F.relu(self.shortcut(x) + self.bn2(self.conv2(self.conv1(x))))


class ResidualEncoder(Encoder):
    """ResNet stages after a strided convolution.

    Args:
        stem: channels after the first convolution, at stride 2.
        widths: channels of the stages at strides 4, 8, 16, ...
        blocks: residual blocks per stage.
    """

    normalisation = Normalisation("RGB", IMAGENET_MEAN, IMAGENET_STD)

    def __init__(self, *, stem: int, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.widths = (stem, *widths)
        self.stem = conv_bn_relu(3, stem, stride=2)
        self.stages = nn.ModuleList()
        inputs = stem
        for width in widths:
            layers = [BasicBlock(inputs, width, stride=2)]
            layers += [BasicBlock(width, width, stride=1) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*layers))
            inputs = width

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image float [B, 3, h, w] -> one level for each of `widths`."""
        levels = [self.stem(image)]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        return levels
