# SPDX-License-Identifier: Apache-2.0
"""Dense networks to ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from sparserefine_ros.zoo.ladder import LadderNet


class _WithFeatures(nn.Module):
    def __init__(self, network: LadderNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(image)
        return self.network.classifier(features), features


def export_onnx(
    module: nn.Module, path: Path, *, example_size: tuple[int, int] = (192, 256)
) -> None:
    """Write `module` as ONNX with input `image` [1, 3, h, w] and output `logits`, free h and w.

    A `LadderNet` gets a second output, `features`.

    Args:
        module: takes float32 [1, 3, h, w], returns logits [1, C, h', w'].
        path: file to write; replaced only once it is whole.
        example_size: (h, w) used for tracing.
    """
    outputs = ["logits"]
    if isinstance(module, LadderNet):
        module, outputs = _WithFeatures(module), ["logits", "features"]
    module.eval()
    example = torch.zeros(1, 3, *example_size)
    free = {2: "height", 3: "width"}
    aside = path.with_suffix(".tmp")
    with warnings.catch_warnings():
        # The tracing exporter writes one self-contained file and needs no extra packages.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module,
            (example,),
            str(aside),
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=outputs,
            dynamic_axes=dict.fromkeys(["image", *outputs], free),
        )
    aside.replace(path)
