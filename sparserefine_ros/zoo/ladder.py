# SPDX-License-Identifier: Apache-2.0
"""A light encoder-ladder network for real-time segmentation.

The layout is that of SwiftNet (Orsic et al., "In Defense of Pre-trained ImageNet Architectures for
Real-time Semantic Segmentation of Road-driving Images", CVPR 2019): a residual encoder, pyramid
pooling, and a ladder of lateral 1x1 convolutions, upsampling, addition and a 3x3 blend. Pyramid
pooling uses the strided windows of DDRNet (Hong et al., 2021), which export with free input sizes.
The ladder goes one step further than SwiftNet's, to stride 2, because the input is already small.

Shape legend: B batch; C classes; h, w input size. Tensors are [B, channels, rows, columns].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; padded to keep size / stride, rounded up."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


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


def resize_like(x: Tensor, reference: Tensor) -> Tensor:
    """Bilinear resize of `x` to the rows and columns of `reference`."""
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """Averages over growing windows, added back at full size."""

    def __init__(self, channels: int, branch_channels: int) -> None:
        super().__init__()
        self.windows = ((5, 2), (9, 4))
        self.local = conv_bn_relu(channels, branch_channels, 1)
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, branch_channels, 1), nn.ReLU(inplace=True))
            for _ in range(len(self.windows) + 1)
        )
        self.blend = conv_bn_relu(branch_channels * (len(self.windows) + 2), branch_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, rows, columns] -> [B, branch_channels, rows, columns]."""
        local = self.local(x)
        branches = [local]
        for (kernel, stride), branch in zip(self.windows, self.pooled, strict=False):
            pooled = F.avg_pool2d(x, kernel, stride, kernel // 2, count_include_pad=False)
            branches.append(resize_like(branch(pooled), x))
        everywhere = self.pooled[-1](x.mean((-2, -1), keepdim=True))
        branches.append(everywhere.expand_as(local))
        return self.blend(torch.cat(branches, 1))  # type: ignore[no-any-return]


class LadderNet(nn.Module):
    """Light segmentation network; logits at half the input size.

    Args:
        classes: number of classes C.
        stem: channels after the first convolution (stride 2).
        widths: channels of the encoder stages at strides 4, 8, 16, ...
        blocks: residual blocks per stage.
        ladder: channels of the decoder.
    """

    output_stride = 2

    def __init__(
        self,
        classes: int,
        *,
        stem: int = 24,
        widths: Sequence[int] = (32, 64, 128, 192),
        blocks: int = 2,
        ladder: int = 48,
    ) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, stem, stride=2)
        self.stages = nn.ModuleList()
        inputs = stem
        for width in widths:
            layers = [BasicBlock(inputs, width, stride=2)]
            layers += [BasicBlock(width, width, stride=1) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*layers))
            inputs = width
        self.context = PyramidPooling(inputs, ladder)
        self.laterals = nn.ModuleList(nn.Conv2d(width, ladder, 1) for width in widths[:-1])
        self.blends = nn.ModuleList(conv_bn_relu(ladder, ladder) for _ in widths[:-1])
        self.narrow = nn.Conv2d(ladder, stem, 1)
        self.head = nn.Sequential(conv_bn_relu(stem, stem), nn.Conv2d(stem, classes, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image float [B, 3, h, w] -> logits float [B, C, ceil(h / 2), ceil(w / 2)]."""
        fine = self.stem(image)
        x, levels = fine, []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        x = self.context(x)
        for level, lateral, blend in zip(
            reversed(levels[:-1]), reversed(self.laterals), reversed(self.blends), strict=True
        ):
            x = blend(resize_like(x, level) + lateral(level))
        return self.head(resize_like(self.narrow(x), fine) + fine)  # type: ignore[no-any-return]
