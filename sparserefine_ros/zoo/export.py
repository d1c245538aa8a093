# SPDX-License-Identifier: Apache-2.0
"""Dense networks to ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn


def export_onnx(
    module: nn.Module, path: Path, *, example_size: tuple[int, int] = (192, 256)
) -> None:
    """Write `module` as ONNX with input `image` [1, 3, h, w] and output `logits`, free h and w.

    Args:
        module: takes float32 [1, 3, h, w], returns logits [1, C, h', w'].
        path: file to write; replaced only once it is whole.
        example_size: (h, w) used for tracing.
    """
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
            output_names=["logits"],
            dynamic_axes={"image": free, "logits": free},
        )
    aside.replace(path)
