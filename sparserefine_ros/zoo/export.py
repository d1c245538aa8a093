# SPDX-License-Identifier: Apache-2.0
"""Dense networks to ONNX."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from sparserefine_ros.errors import BackendError
from sparserefine_ros.zoo.ladder import LadderNet

Precision = Literal["fp32", "fp16"]


class _WithFeatures(nn.Module):
    def __init__(self, network: LadderNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(image)
        return self.network.classifier(features), features


def export_onnx(
    module: nn.Module,
    path: Path,
    *,
    example_size: tuple[int, int] = (192, 256),
    precision: Precision = "fp32",
    output: str = "logits",
) -> None:
    """Write `module` as ONNX with input `image` [B, 3, h, w] and one output, free B, h and w.

    A `LadderNet` gets a second output, `features`. The module is in evaluation mode afterwards,
    and in half precision if that was asked for.

    Args:
        module: takes float [B, 3, h, w], returns [B, C, h', w'].
        path: file to write; replaced only once it is whole.
        example_size: (h, w) used for tracing.
        precision: of weights, input and output.
        output: name of the output.

    Raises:
        BackendError: the package `onnx` is not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        raise BackendError(
            "expected the package onnx to export a network, found none; run: pip install onnx"
        )
    outputs = [output]
    if isinstance(module, LadderNet):
        module, outputs = _WithFeatures(module), [output, "features"]
    module.eval()
    example = torch.zeros(1, 3, *example_size)
    if precision == "fp16":
        module, example = module.half(), example.half()
    free = {"image": {0: "batch", 2: "height", 3: "width"}}
    free |= {name: {0: "batch", 2: "rows", 3: "columns"} for name in outputs}
    aside = path.with_suffix(".tmp")
    with warnings.catch_warnings():
        # The tracing exporter writes one self-contained file. What it warns of besides, sizes that
        # become constants, is for the caller to check.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            module,
            (example,),
            str(aside),
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=outputs,
            dynamic_axes=free,
        )
    aside.replace(path)


def pin_input_size(path: Path, size: tuple[int, int]) -> None:
    """Let an ONNX model take one size only.

    Traced with fixed sides, Mask2Former's graph gets types that ONNX Runtime lacks; so models are
    traced with free ones, which become numbers afterwards.

    Args:
        path: written by `export_onnx`; changed.
        size: (h, w).

    Raises:
        BackendError: the package `onnx` is not installed.
    """
    try:
        import onnx
    except ImportError as err:
        raise BackendError(
            "an ONNX model of a fixed size needs the package onnx; install it: pip install onnx"
        ) from err
    model = onnx.load(path)
    sides = model.graph.input[0].type.tensor_type.shape.dim[2:]
    for side, length in zip(sides, size, strict=True):
        side.dim_value = length
    aside = path.with_suffix(".tmp")
    onnx.save(model, aside)
    aside.replace(path)
