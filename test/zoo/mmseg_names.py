# SPDX-License-Identifier: Apache-2.0
"""State dicts with MMSegmentation 1.x's key names and shapes, written down from its layout.

They share no code with the package. Values are random, variances positive.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def random_state(shapes: Shapes, seed: int = 5) -> dict[str, Tensor]:
    """Weights that keep activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        values = torch.rand(shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            state[key] = 0.5 + values
        elif len(shape) > 1:
            state[key] = (values - 0.5) * math.sqrt(6.0 / math.prod(shape[1:]))
        else:
            state[key] = values - 0.3
    return state


def norm(name: str, width: int) -> Shapes:
    fields = ("weight", "bias", "running_mean", "running_var")
    return {
        **{f"{name}.{field}": (width,) for field in fields},
        f"{name}.num_batches_tracked": (),
    }


def affine(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def biased(name: str, *weight: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def conv_norm(conv: str, bn: str, *weight: int) -> Shapes:
    return {f"{conv}.weight": weight, **norm(bn, weight[0])}


def hrnet(widths: tuple[int, ...], modules: tuple[int, ...], blocks: int, classes: int) -> Shapes:
    """HRNet with FCNHead (num_convs=1, kernel_size=1, concat_input=False, resize_concat)."""
    s: Shapes = {
        **conv_norm("backbone.conv1", "backbone.bn1", 64, 3, 3, 3),
        **conv_norm("backbone.conv2", "backbone.bn2", 64, 64, 3, 3),
    }
    for i in range(blocks):
        at, inputs = f"backbone.layer1.{i}", 64 if i == 0 else 256
        s |= conv_norm(f"{at}.conv1", f"{at}.bn1", 64, inputs, 1, 1)
        s |= conv_norm(f"{at}.conv2", f"{at}.bn2", 64, 64, 3, 3)
        s |= conv_norm(f"{at}.conv3", f"{at}.bn3", 256, 64, 1, 1)
        if i == 0:
            s |= conv_norm(f"{at}.downsample.0", f"{at}.downsample.1", 256, 64, 1, 1)
    at = "backbone.transition1"
    s |= conv_norm(f"{at}.0.0", f"{at}.0.1", widths[0], 256, 3, 3)
    s |= conv_norm(f"{at}.1.0.0", f"{at}.1.0.1", widths[1], 256, 3, 3)
    for n in (2, 3):
        at = f"backbone.transition{n}.{n}.0"
        s |= conv_norm(f"{at}.0", f"{at}.1", widths[n], widths[n - 1], 3, 3)
    for stage, count in zip((2, 3, 4), modules, strict=True):
        for m in range(count):
            s |= _hr_module(f"backbone.stage{stage}.{m}", widths[:stage], blocks)
    total = sum(widths)
    s |= conv_norm("decode_head.convs.0.conv", "decode_head.convs.0.bn", total, total, 1, 1)
    return s | biased("decode_head.conv_seg", classes, total, 1, 1)


def _hr_module(at: str, widths: tuple[int, ...], blocks: int) -> Shapes:
    s: Shapes = {}
    for b, width in enumerate(widths):
        for i in range(blocks):
            for n in (1, 2):
                block = f"{at}.branches.{b}.{i}"
                s |= conv_norm(f"{block}.conv{n}", f"{block}.bn{n}", width, width, 3, 3)
    for to in range(len(widths)):
        for source in range(len(widths)):
            path = f"{at}.fuse_layers.{to}.{source}"
            if source > to:
                s |= conv_norm(f"{path}.0", f"{path}.1", widths[to], widths[source], 1, 1)
            for k in range(to - source):
                out = widths[to] if k == to - source - 1 else widths[source]
                s |= conv_norm(f"{path}.{k}.0", f"{path}.{k}.1", out, widths[source], 3, 3)
    return s


def segnext(
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    expansions: tuple[int, ...],
    head: int,
    classes: int,
) -> Shapes:
    """MSCAN with LightHamHead, group norm in the head."""
    w0 = widths[0]
    stem = "backbone.patch_embed1.proj"
    s: Shapes = {
        **biased(f"{stem}.0", w0 // 2, 3, 3, 3), **norm(f"{stem}.1", w0 // 2),
        **biased(f"{stem}.3", w0, w0 // 2, 3, 3), **norm(f"{stem}.4", w0),
    }  # fmt: skip
    for i, (width, depth, expansion) in enumerate(zip(widths, depths, expansions, strict=True)):
        if i:
            at = f"backbone.patch_embed{i + 1}"
            s |= biased(f"{at}.proj", width, widths[i - 1], 3, 3) | norm(f"{at}.norm", width)
        for j in range(depth):
            at = f"backbone.block{i + 1}.{j}"
            s |= {f"{at}.layer_scale_1": (width,), f"{at}.layer_scale_2": (width,)}
            s |= norm(f"{at}.norm1", width) | norm(f"{at}.norm2", width)
            s |= biased(f"{at}.attn.proj_1", width, width, 1, 1)
            s |= biased(f"{at}.attn.proj_2", width, width, 1, 1)
            unit = f"{at}.attn.spatial_gating_unit"
            s |= biased(f"{unit}.conv0", width, 1, 5, 5)
            for n, k in enumerate((7, 11, 21)):
                s |= biased(f"{unit}.conv{n}_1", width, 1, 1, k)
                s |= biased(f"{unit}.conv{n}_2", width, 1, k, 1)
            s |= biased(f"{unit}.conv3", width, width, 1, 1)
            hidden = width * expansion
            s |= biased(f"{at}.mlp.fc1", hidden, width, 1, 1)
            s |= biased(f"{at}.mlp.dwconv", hidden, 1, 3, 3)
            s |= biased(f"{at}.mlp.fc2", width, hidden, 1, 1)
        s |= affine(f"backbone.norm{i + 1}", width)
    at = "decode_head"
    s |= {f"{at}.squeeze.conv.weight": (head, sum(widths[1:]), 1, 1)}
    s |= affine(f"{at}.squeeze.gn", head)
    s |= biased(f"{at}.hamburger.ham_in.conv", head, head, 1, 1)
    s |= {f"{at}.hamburger.ham_out.conv.weight": (head, head, 1, 1)}
    s |= affine(f"{at}.hamburger.ham_out.gn", head)
    s |= {f"{at}.align.conv.weight": (head, head, 1, 1)} | affine(f"{at}.align.gn", head)
    return s | biased(f"{at}.conv_seg", classes, head, 1, 1)


SEGFORMER_REDUCTIONS = (8, 4, 2, 1)


def segformer(widths: tuple[int, ...], depths: tuple[int, ...], head: int, classes: int) -> Shapes:
    """MixVisionTransformer with SegformerHead."""
    s: Shapes = {}
    inputs = 3
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        at = f"backbone.layers.{i}"
        kernel = 7 if i == 0 else 3
        s |= biased(f"{at}.0.projection", width, inputs, kernel, kernel)
        s |= affine(f"{at}.0.norm", width) | affine(f"{at}.2", width)
        for j in range(depth):
            block = f"{at}.1.{j}"
            s |= affine(f"{block}.norm1", width) | affine(f"{block}.norm2", width)
            s |= {f"{block}.attn.attn.in_proj_weight": (3 * width, width)}
            s |= {f"{block}.attn.attn.in_proj_bias": (3 * width,)}
            s |= biased(f"{block}.attn.attn.out_proj", width, width)
            if (r := SEGFORMER_REDUCTIONS[i]) > 1:
                s |= biased(f"{block}.attn.sr", width, width, r, r)
                s |= affine(f"{block}.attn.norm", width)
            s |= biased(f"{block}.ffn.layers.0", 4 * width, width, 1, 1)
            s |= biased(f"{block}.ffn.layers.1", 4 * width, 1, 3, 3)
            s |= biased(f"{block}.ffn.layers.4", width, 4 * width, 1, 1)
        at = f"decode_head.convs.{i}"
        s |= conv_norm(f"{at}.conv", f"{at}.bn", head, width, 1, 1)
        inputs = width
    s |= conv_norm(
        "decode_head.fusion_conv.conv", "decode_head.fusion_conv.bn", head, 4 * head, 1, 1
    )
    return s | biased("decode_head.conv_seg", classes, head, 1, 1)
