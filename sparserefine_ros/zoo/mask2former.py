# SPDX-License-Identifier: Apache-2.0
"""Mask2Former with a Swin backbone, of `transformers`, as a semantic segmenter.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022. The
network returns Q queries, each with a distribution over the classes and "none" and with a mask;
their product summed over the queries scores each class of each pixel:

    score[c, y, x] = sum_q softmax(class[q])[c] * sigmoid(mask[q, y, x])

Shape legend: B batch; C classes; Q queries; h, w input size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from torch import Tensor, nn

from sparserefine_ros.zoo.network import DenseNetwork
from sparserefine_ros.zoo.transformer import load_transformers


class Size(NamedTuple):
    """A variant of the Swin backbone.

    Attributes:
        width: channels of the first stage; doubled in each later one.
        depths: transformer blocks of each stage.
        heads: attention heads of each stage.
        window: side of the attention windows.
    """

    width: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int


SIZES: Final[Mapping[str, Size]] = {
    "tiny": Size(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "large": Size(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}


class Mask2Former(DenseNetwork):
    """Mask2Former; scores of classes at a quarter of the input size.

    Args:
        model: a `Mask2FormerModel` of `transformers`.
        classes: C.
    """

    output_kind = "probabilities"
    # The traced graph holds the sizes of all levels as constants.
    free_size = False
    # Its position embeddings count in the network's precision, in which ONNX has no Range.
    half_precision = False

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model = model
        hidden: int = model.config.hidden_dim  # type: ignore[union-attr, assignment]
        self.class_predictor = nn.Linear(hidden, classes + 1)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image float [B, 3, h, w] -> scores float [B, C, h / 4, w / 4], 0 .. Q."""
        found = self.model(pixel_values=image, return_dict=True)
        queries = found.transformer_decoder_last_hidden_state
        classes = self.class_predictor(queries).softmax(-1)[..., :-1]
        masks = found.masks_queries_logits[-1].sigmoid()
        scores = classes.transpose(1, 2) @ masks.flatten(2)
        return scores.unflatten(2, masks.shape[2:])  # type: ignore[no-any-return]


def mask2former_config(size: Size, **fields: Any) -> Any:
    """`transformers`' description of a variant; `fields` go on top of it."""
    transformers = load_transformers("Mask2Former")
    backbone = transformers.SwinConfig(
        embed_dim=size.width,
        depths=list(size.depths),
        num_heads=list(size.heads),
        window_size=size.window,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return transformers.Mask2FormerConfig(
        backbone_config=backbone, attn_implementation="eager", **fields
    )


def build_mask2former(classes: int, size: Size, **fields: Any) -> Mask2Former:
    """Mask2Former with random weights.

    Raises:
        BackendError: `transformers` is not installed.
    """
    config = mask2former_config(size, **fields)
    return Mask2Former(load_transformers("Mask2Former").Mask2FormerModel(config), classes)
