# SPDX-License-Identifier: Apache-2.0
"""Entropy, class and gated fusion in one pass each.

The definitions are `uncertainty.measure_uncertainty` and `ensemble.GatedEnsembler`; the CPU twin is
`kernels.fusion`. All C logits of a pixel are in registers at once, so each is read once. Logits may
have any floating type; everything is computed in float32.

Shape legend: h, w low resolution; N pixels; C classes, at most 256; G hidden units of the gate.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from sparserefine_ros.ensemble import GatedEnsembler
from sparserefine_ros.errors import ModelOutputError
from sparserefine_ros.records import Uncertainty
from sparserefine_ros.triton_kernels.precision import multiply_add
from sparserefine_ros.triton_kernels.runtime import check_device, launching_on, power_of_two
from sparserefine_ros.uncertainty import LOG_PROBABILITY_FLOOR

_MOST_CLASSES: Final = 256  # labels are uint8

# Values of one program's tile; a pixel takes a power of two of them.
_TILE: Final = 4096
_FLOOR: Final = tl.constexpr(LOG_PROBABILITY_FLOOR)
_LOWEST: Final = tl.constexpr(float("-inf"))

# Classes, rounded up, with which a program may have 64 pixels and more.
_NARROW: Final = 32
# Beyond, a program spills its registers, and compiling it takes seconds.
MOST_FUSED: Final = 64

# The smallest side of a matrix product.
_LEAST_SIDE: Final = 16


@triton.jit
def _softmax(logits, in_classes):
    """Probabilities [BLOCK, C] and entropy in nats [BLOCK], zero outside the classes."""
    logits = tl.where(in_classes[None, :], logits, _LOWEST)
    shifted = logits - tl.max(logits, 1)[:, None]
    exponentials = tl.exp(shifted)
    total = tl.sum(exponentials, 1)
    probabilities = exponentials / total[:, None]
    # The reference clamps probabilities at 1e-5 inside the logarithm.
    logarithms = tl.maximum(shifted - tl.log(total)[:, None], _FLOOR)
    return probabilities, -tl.sum(probabilities * logarithms, 1)


@triton.jit
def _store_summary(logits, in_classes, classes, pixel, in_count, entropy, labels, top):
    """Entropy, the lowest class id among the highest logits, and its probability."""
    probabilities, entropies = _softmax(logits, in_classes)
    logits = tl.where(in_classes[None, :], logits, _LOWEST)
    highest = logits == tl.max(logits, 1)[:, None]
    # A logit that is NaN equals nothing; the label must be a class all the same.
    label = tl.min(tl.where(highest & in_classes[None, :], classes[None, :], 255), 1)
    tl.store(entropy + pixel, tl.maximum(entropies, 0.0), mask=in_count)
    tl.store(labels + pixel, label.to(tl.uint8), mask=in_count)
    tl.store(top + pixel, tl.max(probabilities, 1), mask=in_count)


@triton.jit(do_not_specialize=["count"])
def _summarise_kernel(
    logits, class_pitch, pixel_pitch, entropy, labels, top, count,
    CLASSES: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    classes = tl.arange(0, WIDTH)
    in_count, in_classes = pixel < count, classes < CLASSES
    at = pixel[:, None] * pixel_pitch + classes.to(tl.int64)[None, :] * class_pitch
    mask = in_count[:, None] & in_classes[None, :]
    values = tl.load(logits + at, mask=mask, other=0.0).to(tl.float32)
    _store_summary(values, in_classes, classes, pixel, in_count, entropy, labels, top)


@triton.jit
def _evidence_product(logits, in_classes, weight, entropy_weight, hidden, acc, WIDTH: tl.constexpr):
    """Add the gate's product with the probabilities and the entropy of one of the two."""
    probabilities, entropy = _softmax(logits, in_classes)
    classes = tl.arange(0, WIDTH)
    columns = tl.load(weight + classes[:, None] * hidden.shape[0] + hidden[None, :])
    acc = multiply_add(probabilities, columns, acc)
    return acc + entropy[:, None] * tl.load(entropy_weight + hidden)[None, :]


@triton.jit(do_not_specialize=["count"])
def _fuse_kernel(
    dense, dense_pitch, refined, refined_pitch, dense_weight, dense_entropy, refined_weight,
    refined_entropy, bias, preference, threshold, mix_in, mix_in_bias, mix_out, mix_out_bias,
    entropy, labels, top, count,
    CLASSES: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    classes, hidden = tl.arange(0, WIDTH), tl.arange(0, HIDDEN)
    in_count, in_classes = pixel < count, classes < CLASSES
    mask = in_count[:, None] & in_classes[None, :]
    y1 = tl.load(dense + pixel[:, None] * dense_pitch + classes[None, :], mask=mask, other=0.0)
    y2 = tl.load(refined + pixel[:, None] * refined_pitch + classes[None, :], mask=mask, other=0.0)
    y1, y2 = y1.to(tl.float32), y2.to(tl.float32)

    acc = tl.zeros((BLOCK, HIDDEN), dtype=tl.float32) + tl.load(bias + hidden)[None, :]
    acc = _evidence_product(y1, in_classes, dense_weight, dense_entropy, hidden, acc, WIDTH)
    acc = _evidence_product(y2, in_classes, refined_weight, refined_entropy, hidden, acc, WIDTH)
    # A softmax over two values is the sigmoid of their difference.
    score = tl.sum(tl.maximum(acc, 0.0) * tl.load(preference + hidden)[None, :], 1)
    share = tl.sigmoid(score + tl.load(threshold))[:, None]
    mixed = y2 + share * (y1 - y2)

    acc = tl.zeros((BLOCK, HIDDEN), dtype=tl.float32) + tl.load(mix_in_bias + hidden)[None, :]
    weight = tl.load(mix_in + classes[:, None] * HIDDEN + hidden[None, :])
    acc = tl.maximum(multiply_add(mixed, weight, acc), 0.0)
    out = tl.zeros((BLOCK, WIDTH), dtype=tl.float32) + tl.load(mix_out_bias + classes)[None, :]
    weight = tl.load(mix_out + hidden[:, None] * WIDTH + classes[None, :])
    out = multiply_add(acc, weight, out)
    _store_summary(out, in_classes, classes, pixel, in_count, entropy, labels, top)


def measure_uncertainty(logits: Tensor) -> Uncertainty:
    """Summarise logits per pixel on their device, as `uncertainty.measure_uncertainty` does.

    Args:
        logits: [C, h, w], finite.

    Returns:
        Entropy in nats, labels and top probability, each [h, w].

    Raises:
        ModelOutputError: more classes than a label can name.
        BackendError: not on a CUDA device.
    """
    classes, *size = logits.shape
    _check_classes(classes)
    check_device(logits.device)
    columns = logits.detach().reshape(classes, -1)
    result = _fresh_summary(columns.shape[1], logits.device)
    width = power_of_two(classes, least=2)
    block = max(1, _TILE // width)
    if columns.shape[1]:
        with launching_on(columns):
            _summarise_kernel[(triton.cdiv(columns.shape[1], block),)](
                columns, columns.stride(0), columns.stride(1), *result, columns.shape[1],
                CLASSES=classes, WIDTH=width, BLOCK=block,
            )  # fmt: skip
    return Uncertainty(*(values.view(size) for values in result))


def _check_classes(classes: int) -> None:
    if not 0 < classes <= _MOST_CLASSES:
        raise ModelOutputError(
            f"expected logits of 1 .. {_MOST_CLASSES} classes, got {classes}; labels are uint8"
        )


def _fresh_summary(count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    entropy, top = (torch.empty(count, device=device) for _ in range(2))
    return entropy, torch.empty(count, dtype=torch.uint8, device=device), top


class TritonGate:
    """A trained gate, fused and summarised in one pass.

    Args:
        ensembler: trained weights on a CUDA device; they are copied.

    Raises:
        ModelOutputError: more classes than a label can name.
        BackendError: not on a CUDA device.
    """

    def __init__(self, ensembler: GatedEnsembler) -> None:
        gate_in, gate_out, mix_in, mix_out = (
            layer
            for layers in (ensembler.gate, ensembler.mix)
            for layer in layers
            if isinstance(layer, torch.nn.Linear)
        )
        self._classes = mix_out.out_features
        _check_classes(self._classes)
        check_device(gate_in.weight.device)
        self._width = power_of_two(self._classes, least=_LEAST_SIDE)
        self._hidden = power_of_two(gate_in.out_features, least=_LEAST_SIDE)
        with torch.no_grad():
            first, second = gate_in.weight.split(self._classes + 1, 1)
            self._weights = [
                *self._evidence(first),
                *self._evidence(second),
                self._sized(gate_in.bias, self._hidden),
                self._sized(gate_out.weight[0] - gate_out.weight[1], self._hidden),
                (gate_out.bias[0] - gate_out.bias[1]).float().reshape(1),
                self._sized(mix_in.weight.t(), self._width, self._hidden),
                self._sized(mix_in.bias, self._hidden),
                self._sized(mix_out.weight.t(), self._hidden, self._width),
                self._sized(mix_out.bias, self._width),
            ]

    def _evidence(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The gate's weights [G, C + 1] of one of the two: of probabilities, and of the entropy."""
        probabilities, entropy = weight[:, :-1].t(), weight[:, -1]
        return self._sized(probabilities, self._width, self._hidden), self._sized(
            entropy, self._hidden
        )

    @staticmethod
    def _sized(values: Tensor, *sizes: int) -> Tensor:
        """A float32 copy with zeros up to those sizes."""
        missing = [size - have for size, have in zip(sizes, values.shape, strict=True)]
        padding = [side for amount in reversed(missing) for side in (0, amount)]
        return F.pad(values.float(), padding).clone().contiguous()

    def __call__(self, dense: Tensor, refined: Tensor) -> Uncertainty:
        """Two [N, C] on the device of the weights -> summary of the fused logits, [N] each."""
        dense, refined = (
            rows if rows.stride(1) == 1 else rows.contiguous() for rows in (dense, refined)
        )
        count = dense.shape[0]
        result = _fresh_summary(count, dense.device)
        widest = max(self._width, self._hidden)
        # So that the registers hold a tile: wider ones keep more of it at a time.
        block = max(_LEAST_SIDE, _TILE // (widest if widest <= _NARROW else 2 * widest))
        if count:
            with launching_on(dense):
                _fuse_kernel[(triton.cdiv(count, block),)](
                    dense, dense.stride(0), refined, refined.stride(0), *self._weights,
                    *result, count,
                    CLASSES=self._classes, WIDTH=self._width, HIDDEN=self._hidden, BLOCK=block,
                    num_warps=8,
                )  # fmt: skip
        return Uncertainty(*result)
