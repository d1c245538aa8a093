# SPDX-License-Identifier: Apache-2.0
"""What every dense network of the zoo is.

Shape legend: B batch; C classes; h, w input size; s output stride.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from sparserefine_ros.bundle_spec import IMAGENET_MEAN, IMAGENET_STD
from sparserefine_ros.image import Normalisation


class DenseNetwork(nn.Module):
    """A dense segmentation network with one output.

    Attributes:
        normalisation: what it expects of its input, statistics on the 0-255 scale.
        output_stride: s, input size / output size.
        output_kind: logits, or scores whose logarithm is used as logits.
        multiple_of: input sides are multiples of it.
        free_size: whether one ONNX graph of it serves every input size.
        half_precision: whether it can be exported in half precision.
    """

    normalisation: Normalisation = Normalisation("RGB", IMAGENET_MEAN, IMAGENET_STD)
    output_stride: int = 4
    output_kind: Literal["logits", "probabilities"] = "logits"
    multiple_of: int = 32
    free_size: bool = True
    half_precision: bool = True

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image float [B, 3, h, w] -> float [B, C, h / s, w / s]."""
        raise NotImplementedError
