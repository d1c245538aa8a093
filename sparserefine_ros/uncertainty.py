# SPDX-License-Identifier: Apache-2.0
"""Entropy, most likely class and its probability of per-pixel logits, without softmax copies.

The entropy is the reference's (SparseRefine, section 3.1, and its release), in nats:
e = -sum_c p_c log(max(p_c, 1e-5)). Shape legend: C classes; h, w low resolution; N pixels.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from sparserefine_ros.kernels import fusion
from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.records import Uncertainty

LOG_PROBABILITY_FLOOR: Final = math.log(1e-5)

# Columns worked on at a time, so that the block's temporaries stay in the second-level cache.
_BLOCK: Final = 8192


def measure_uncertainty(logits: torch.Tensor) -> Uncertainty:
    """Summarise logits per pixel.

    Args:
        logits: float32 [C, h, w], finite; on a GPU Triton's kernel takes them.

    Returns:
        Entropy, labels and top probability, each [h, w], on the CPU.
    """
    if logits.is_cuda:
        from sparserefine_ros.triton_kernels import fusion as triton_fusion

        found = triton_fusion.measure_uncertainty(logits)
        return Uncertainty(found.entropy.cpu(), found.labels.cpu(), found.top_probability.cpu())
    size = logits.shape[-2:]
    columns = logits.detach().reshape(logits.shape[0], -1)
    entropy, labels, top = summarise_columns(columns)
    return Uncertainty(
        entropy=entropy.view(size), labels=labels.view(size), top_probability=top.view(size)
    )


def summarise_columns(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Entropy in nats, label and top probability of each column of logits, float32 [C, N]."""
    kernels = compiled_kernels()
    if kernels is not None:
        return fusion.summarise_columns(kernels, logits)
    columns, count = logits.contiguous().numpy(), logits.shape[1]
    entropy = np.empty(count, np.float32)
    labels = np.empty(count, np.uint8)
    top = np.empty(count, np.float32)
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        _summarise_block(columns[:, block], entropy[block], labels[block], top[block])
    return torch.from_numpy(entropy), torch.from_numpy(labels), torch.from_numpy(top)


def _summarise_block(
    logits: NDArray[np.float32],
    entropy: NDArray[np.float32],
    labels: NDArray[np.uint8],
    top: NDArray[np.float32],
) -> None:
    best = logits[0].copy()
    labels[:] = 0
    for label in range(1, logits.shape[0]):
        # Strictly greater: ties go to the lower class id, as argmax does.
        np.copyto(labels, label, where=logits[label] > best)
        np.maximum(best, logits[label], out=best)
    shifted = logits - best
    probabilities = np.exp(shifted)
    total = probabilities.sum(0)
    np.reciprocal(total, out=top)
    # log p = x - max - log sum exp(x - max), clamped where the reference clamps p.
    shifted -= np.log(total)
    np.maximum(shifted, LOG_PROBABILITY_FLOOR, out=shifted)
    probabilities *= shifted
    np.multiply(probabilities.sum(0), -top, out=entropy)
