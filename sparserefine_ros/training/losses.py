# SPDX-License-Identifier: Apache-2.0
"""Losses at pixels, beside those of PyTorch.

Shape legend: C classes; N pixels. Logits are columns [C, N]: softmax over the few classes of a row
is several times slower.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sparserefine_ros.records import IGNORED_LABEL


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice loss: 1 - the mean over the classes of 2 sum(p t) / (sum(p^2) + sum(t^2)).

    Milletari et al., "V-Net", 2016, on every class that a label names; p are the probabilities of
    the class, t is 1 where the label is that class and else 0. Unlike cross entropy it gives a rare
    class the weight of a frequent one.

    Args:
        logits: float [C, N].
        labels: int64 [N], class ids; pixels of label 255 do not count.

    Returns:
        Scalar, 0 .. 1; 0 without labelled pixels.
    """
    labelled = labels != IGNORED_LABEL
    probabilities = logits[:, labelled].float().softmax(0)
    truth = F.one_hot(labels[labelled], len(logits)).t().to(probabilities.dtype)
    pixels = truth.sum(1)
    overlap = 2.0 * (probabilities * truth).sum(1)
    dice = overlap / (probabilities.square().sum(1) + pixels).clamp_min(1.0)
    present = (pixels > 0).to(dice.dtype)
    return ((1.0 - dice) * present).sum() / present.sum().clamp_min(1.0)
