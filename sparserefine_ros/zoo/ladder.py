# SPDX-License-Identifier: Apache-2.0
"""A light network for real-time segmentation: an encoder, pyramid pooling and a ladder decoder.

The layout is that of SwiftNet (Orsic et al., "In Defense of Pre-trained ImageNet Architectures for
Real-time Semantic Segmentation of Road-driving Images", CVPR 2019): a residual encoder, pyramid
pooling, and a ladder of lateral 1x1 convolutions, upsampling, addition and a 3x3 blend. Pyramid
pooling uses the strided windows of DDRNet (Hong et al., 2021), which export with free input sizes.
The ladder goes one step further than SwiftNet's, to stride 2, because the input is already small.

Shape legend: B batch; C classes; h, w input size. Tensors are [B, channels, rows, columns].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.zoo.convolution import resize_like
from sparserefine_ros.zoo.encoder import Encoder, conv_bn_relu
from sparserefine_ros.zoo.network import DenseNetwork


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


class LadderNet(DenseNetwork):
    """Light segmentation network; logits at half the input size.

    Args:
        encoder: at least two levels.
        classes: number of classes C.
        ladder: channels of the decoder.
        features: channels F of the last features, which the classifier sees.
    """

    output_stride = 2
    multiple_of = 4

    def __init__(self, encoder: Encoder, classes: int, *, ladder: int, features: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.normalisation = encoder.normalisation
        finest, *middle, deepest = encoder.widths
        self.context = PyramidPooling(deepest, ladder)
        self.laterals = nn.ModuleList(nn.Conv2d(width, ladder, 1) for width in middle)
        self.blends = nn.ModuleList(conv_bn_relu(ladder, ladder) for _ in middle)
        self.narrow = nn.Conv2d(ladder, features, 1)
        self.finest_lateral = nn.Conv2d(finest, features, 1)
        self.finest_blend = conv_bn_relu(features, features)
        self.classifier = nn.Conv2d(features, classes, 1)

    def features(self, image: Tensor) -> Tensor:
        """Normalised image float [B, 3, h, w] -> float [B, F, ceil(h / 2), ceil(w / 2)]."""
        finest, *middle, deepest = self.encoder(image)
        x = self.context(deepest)
        for level, lateral, blend in zip(
            reversed(middle), reversed(self.laterals), reversed(self.blends), strict=True
        ):
            x = blend(resize_like(x, level) + lateral(level))
        joined = resize_like(self.narrow(x), finest) + self.finest_lateral(finest)
        return self.finest_blend(joined)  # type: ignore[no-any-return]

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image float [B, 3, h, w] -> logits float [B, C, ceil(h / 2), ceil(w / 2)]."""
        return self.classifier(self.features(image))  # type: ignore[no-any-return]
