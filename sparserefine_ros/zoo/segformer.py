# SPDX-License-Identifier: Apache-2.0
"""SegFormer, with the encoder of `transformers`.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
NeurIPS 2021. Its head exists in two forms: the authors' (and Hugging Face's) projects each level by
a linear layer; MMSegmentation's adds batch norm and ReLU there.

Shape legend: B batch; C classes; h, w input size. Tensors are [B, channels, rows, columns].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sparserefine_ros.zoo.convolution import PointwiseConv, resize_like
from sparserefine_ros.zoo.network import DenseNetwork
from sparserefine_ros.zoo.transformer import load_transformers

# MMSegmentation's layer norms; those of `transformers` have 1e-5.
NORM_EPSILON: Final = 1e-6

HeadKind = Literal["linear", "normed"]


class Size(NamedTuple):
    """A variant of SegFormer.

    Attributes:
        widths: channels of the stages at strides 4, 8, 16 and 32.
        depths: transformer blocks of each stage.
        head: channels of the head.
    """

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    head: int = 256


_WIDE: Final = (64, 128, 320, 512)
# The authors' head has 768 channels from B2 on; MMSegmentation, which the paper follows, has 256.
SIZES: Final[Mapping[str, Size]] = {
    "b0": Size((32, 64, 160, 256), (2, 2, 2, 2)),
    "b1": Size(_WIDE, (2, 2, 2, 2)),
    "b2": Size(_WIDE, (3, 4, 6, 3)),
    "b3": Size(_WIDE, (3, 4, 18, 3)),
    "b4": Size(_WIDE, (3, 8, 27, 3)),
    "b5": Size(_WIDE, (3, 6, 40, 3)),
}


class NormedHead(nn.Module):
    """MMSegmentation's head; modules bear the names of its checkpoints."""

    def __init__(self, widths: Sequence[int], channels: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(PointwiseConv(width, channels, norm="bn") for width in widths)
        self.fusion_conv = PointwiseConv(channels * len(widths), channels, norm="bn")
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels, finest first -> [B, C, rows, columns] of the finest."""
        parts = [conv(level) for conv, level in zip(self.convs, levels, strict=True)]
        x = torch.cat([parts[0], *(resize_like(part, parts[0]) for part in parts[1:])], 1)
        return self.conv_seg(self.fusion_conv(x))  # type: ignore[no-any-return]


class SegFormer(DenseNetwork):
    """SegFormer; logits at a quarter of the input size.

    Args:
        model: a `SegformerForSemanticSegmentation` of `transformers`.
        head: what takes the place of the model's own head; None to keep it.

    Attributes:
        model: the one given.
    """

    def __init__(self, model: nn.Module, head: NormedHead | None = None) -> None:
        super().__init__()
        self.model = model
        if head is not None:
            self.model.decode_head = head

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image float [B, 3, h, w] -> logits float [B, C, h / 4, w / 4]."""
        return self.model(pixel_values=image, return_dict=True).logits  # type: ignore[no-any-return]


def segformer_config(classes: int, size: Size) -> Any:
    """`transformers`' description of a variant."""
    return load_transformers("SegFormer").SegformerConfig(
        hidden_sizes=list(size.widths),
        num_attention_heads=[width // size.widths[0] for width in size.widths],
        depths=list(size.depths),
        decoder_hidden_size=size.head,
        num_labels=classes,
        attn_implementation="eager",
    )


def build_segformer(classes: int, size: Size, *, head: HeadKind = "linear") -> SegFormer:
    """SegFormer with random weights.

    Args:
        classes: C.
        size: one of `SIZES`, or another.
        head: the authors' ("linear") or MMSegmentation's ("normed").

    Raises:
        BackendError: `transformers` is not installed.
    """
    transformers = load_transformers("SegFormer")
    model = transformers.SegformerForSemanticSegmentation(segformer_config(classes, size))
    if head == "linear":
        return SegFormer(model)
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = NORM_EPSILON
    return SegFormer(model, NormedHead(size.widths, size.head, classes))
