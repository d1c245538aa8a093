# SPDX-License-Identifier: Apache-2.0
"""SegFormer checkpoints of MMSegmentation 1.x, and of the authors' own code.

Both fuse the projections of the attention, MMSegmentation query, key and value, the authors key and
value. MMSegmentation's MLPs are 1x1 convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor, nn

from sparserefine_ros.zoo.checkpoints.hub import load_by_file_names
from sparserefine_ros.zoo.checkpoints.state import Rule, fill, rename, without
from sparserefine_ros.zoo.segformer import (
    NORM_EPSILON,
    SegFormer,
    Size,
    build_segformer,
    segformer_config,
)
from sparserefine_ros.zoo.transformer import load_transformers

_BACKBONE: Final = "backbone."
_HEAD: Final = "decode_head."

# From MMSegmentation's names to those of files of `transformers`; stages count from 0.
_MMSEG: Final[tuple[Rule, ...]] = (
    (r"^layers\.(\d)\.0\.projection\.", r"encoder.patch_embeddings.\1.proj."),
    (r"^layers\.(\d)\.0\.norm\.", r"encoder.patch_embeddings.\1.layer_norm."),
    (r"^layers\.(\d)\.2\.", r"encoder.layer_norm.\1."),
    (r"^layers\.(\d)\.1\.", r"encoder.block.\1."),
    (r"\.attn\.attn\.in_proj_(weight|bias)$", r".attention.self.query+key+value.\1"),
    (r"\.attn\.attn\.out_proj\.", ".attention.output.dense."),
    (r"\.ffn\.layers\.0\.", ".mlp.dense1."),
    (r"\.ffn\.layers\.1\.", ".mlp.dwconv.dwconv."),
    (r"\.ffn\.layers\.4\.", ".mlp.dense2."),
)
# The same for the authors' names, whose stages count from 1.
_AUTHORS: Final[tuple[Rule, ...]] = (
    *(
        (rf"^{name}{stage + 1}\.", rf"encoder.{hub_name}.{stage}.")
        for stage in range(4)
        for name, hub_name in (
            ("patch_embed", "patch_embeddings"),
            ("block", "block"),
            ("norm", "layer_norm"),
        )
    ),
    (r"(patch_embeddings\.\d)\.norm\.", r"\1.layer_norm."),
    (r"\.attn\.q\.", ".attention.self.query."),
    (r"\.attn\.kv\.", ".attention.self.key+value."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc(\d)\.", r".mlp.dense\1."),
)
_COMMON: Final[tuple[Rule, ...]] = (
    (r"\.attn\.sr\.", ".attention.self.sr."),
    (r"\.attn\.norm\.", ".attention.self.layer_norm."),
    (r"\.norm(\d)\.", r".layer_norm_\1."),
)
_AUTHORS_HEAD: Final[tuple[Rule, ...]] = (
    *((rf"^linear_c{stage + 1}\.", f"linear_c.{stage}.") for stage in range(4)),
    (r"^linear_fuse\.conv\.", "linear_fuse."),
    (r"^linear_fuse\.bn\.", "batch_norm."),
    (r"^linear_pred\.", "classifier."),
)
# The authors' head inherits a classifier that it does not use.
_AUTHORS_UNUSED: Final = "conv_seg."
# Norms with PyTorch's epsilon in the authors' code; the others have a smaller one.
_AUTHORS_WIDE_NORMS: Final = ("patch_embeddings.layer_norm", "sequence_reduction.layer_norm")
_FUSED: Final = re.compile(r"(query\+)?key\+value")


def load_segformer(
    classes: int, state: Mapping[str, Tensor], source: str, *, size: Size
) -> SegFormer:
    """SegFormer with the weights of a state dict.

    Args:
        classes: C.
        state: MMSegmentation's or the authors', tensors `backbone.*` and `decode_head.*`.
        source: where it comes from, for the error text.
        size: variant; the width of the authors' head is taken from the state.

    Raises:
        CheckpointError: keys are missing or unknown, or shapes differ.
        BackendError: `transformers` is not installed.
    """
    if any(key.startswith(f"{_BACKBONE}block1.") for key in state):
        return _load_authors(classes, state, source, size)
    network = build_segformer(classes, size, head="normed")
    head, rest = _split(state, _HEAD)
    fill(network.get_submodule("model.decode_head"), head, source=f"{source}, {_HEAD}*")
    encoder, rest = _split(rest, _BACKBONE)
    loaded = load_by_file_names(
        load_transformers("SegFormer").SegformerModel,
        segformer_config(classes, size),
        {**file_names(encoder, _MMSEG), **rest},
        source=f"{source}, {_BACKBONE}*",
    )
    network.get_submodule("model.segformer").load_state_dict(loaded.state_dict())
    return network


def _load_authors(classes: int, state: Mapping[str, Tensor], source: str, size: Size) -> SegFormer:
    encoder, rest = _split(state, _BACKBONE)
    head, rest = _split(rest, _HEAD)
    named = {f"segformer.{key}": value for key, value in file_names(encoder, _AUTHORS).items()}
    for key, value in rename(without(head, [_AUTHORS_UNUSED]), _AUTHORS_HEAD).items():
        named[f"{_HEAD}{key}"] = value
    fusion = head.get("linear_fuse.conv.weight")
    if fusion is not None:
        size = size._replace(head=fusion.shape[0])
    model = load_by_file_names(
        load_transformers("SegFormer").SegformerForSemanticSegmentation,
        segformer_config(classes, size),
        {**named, **rest},
        source=source,
    )
    for key, part in model.named_modules():
        if isinstance(part, nn.LayerNorm) and not key.endswith(_AUTHORS_WIDE_NORMS):
            part.eps = NORM_EPSILON
    return SegFormer(model)


def file_names(encoder: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """An encoder's tensors by the names in files of `transformers`, fused ones taken apart."""
    named = {}
    for key, value in rename(encoder, (*rules, *_COMMON)).items():
        if key.endswith((".mlp.dense1.weight", ".mlp.dense2.weight")):
            value = value.flatten(1)
        fused = _FUSED.search(key)
        parts = fused[0].split("+") if fused else [""]
        for part, values in zip(parts, value.chunk(len(parts)), strict=False):
            named[_FUSED.sub(part, key)] = values
    return named


def _split(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Entries below `prefix`, without it, and the others."""
    below = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return below, without(state, [prefix])
