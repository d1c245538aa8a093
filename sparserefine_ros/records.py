# SPDX-License-Identifier: Apache-2.0
"""Frozen records that pass between the stages of the pipeline.

Shape legend: H, W full resolution; h, w low resolution; C classes; N selected pixels.
Maps are indexed [row, column]; row 0 is the top of the image.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

# The label of pixels that no one labelled.
IGNORED_LABEL: Final = 255


class Map(enum.Enum):
    """A full-resolution output that can be asked for; what is not asked for is not computed."""

    LABELS = "labels"
    ENTROPY = "entropy"
    CONFIDENCE = "confidence"
    REFINED = "refined"
    DENSE_LABELS = "dense_labels"


ALL_MAPS = frozenset(Map)


@dataclass(frozen=True)
class DenseOutput:
    """What the dense model says at low resolution.

    Attributes:
        logits: float32 [C, h, w]. For a model that emits probabilities, log(clip(p, 1e-10)).
        features: float32 [F, h', w'], what the model's classifier sees, at the model's own size;
            None where nobody asked for them.
    """

    logits: torch.Tensor
    features: torch.Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.logits.shape[-2], self.logits.shape[-1]


@dataclass(frozen=True)
class Uncertainty:
    """Per-pixel summary of logits: of the dense ones, [h, w], or of the fused ones, [N].

    Attributes:
        entropy: float32, nats, 0 .. log(C).
        labels: uint8, class of the highest logit.
        top_probability: float32, its probability, 1/C .. 1.
    """

    entropy: torch.Tensor
    labels: torch.Tensor
    top_probability: torch.Tensor


@dataclass(frozen=True)
class Selection:
    """The full-resolution pixels to refine, in row-major order.

    Attributes:
        pixels: int64 [N], flat full-resolution index row * W + column, ascending.
        low_res_pixels: int64 [N], flat low-resolution index whose block each pixel lies in.
        low_res_mask: bool [h, w], the selected low-resolution pixels.
        full_size: (H, W).
        candidates: number of full-resolution pixels above the threshold, before the budget.
        budget_hit: whether the pixel budget removed candidates.
        whole_blocks: whether the pixels are all those of the selected low-resolution pixels.
    """

    pixels: torch.Tensor
    low_res_pixels: torch.Tensor
    low_res_mask: torch.Tensor
    full_size: tuple[int, int]
    candidates: int
    budget_hit: bool
    whole_blocks: bool = True

    @property
    def count(self) -> int:
        """N, the number of selected pixels."""
        return self.pixels.numel()

    @property
    def low_res_size(self) -> tuple[int, int]:
        """(h, w)."""
        height, width = self.low_res_mask.shape
        return height, width

    @property
    def share(self) -> float:
        """Selected share of the full-resolution image, 0 .. 1."""
        return self.count / (self.full_size[0] * self.full_size[1])


STAGES = ("resize", "dense", "entropy", "selection", "plan", "refine", "fusion", "maps")


@dataclass(frozen=True)
class StageTimes:
    """Wall-clock time of each stage of one frame.

    Attributes:
        milliseconds: one entry for each name in `STAGES`; 0 for a stage that did not run.
    """

    milliseconds: Mapping[str, float]

    @property
    def total_ms(self) -> float:
        """Sum over the stages."""
        return sum(self.milliseconds.values())

    def __add__(self, other: StageTimes) -> StageTimes:
        """Stage by stage."""
        return StageTimes(
            {name: self.milliseconds[name] + other.milliseconds[name] for name in STAGES}
        )


@dataclass(frozen=True)
class Prediction:
    """The result for one image. Maps that were not asked for are None.

    Attributes:
        labels: uint8 [H, W], class ids; 255 is never predicted.
        entropy: float32 [H, W], nats; after refinement at refined pixels.
        confidence: uint8 [H, W], round(255 * top probability).
        refined: bool [H, W], where the sparse refiner replaced the dense result.
        dense_labels: uint8 [H, W], class ids before refinement.
        dense: summary of the dense result at low resolution, [h, w]; always there.
        size: (H, W).
        low_res_size: (h, w) at which the dense model ran.
        refined_pixels: number of refined pixels.
        candidate_pixels: number of pixels above the threshold, before the pixel budget.
        budget_hit: whether the pixel budget, or the deadline, removed candidates.
        affordable_pixels: how many the deadline allowed; None without one.
        unrefined: why nothing was refined although pixels were selected, when the memory of the GPU
            ran out; empty otherwise.
        batch: number of pictures that the dense model saw together.
        times: wall-clock time of each stage; the dense model's is that of the whole batch.
    """

    labels: NDArray[np.uint8] | None
    entropy: NDArray[np.float32] | None
    confidence: NDArray[np.uint8] | None
    refined: NDArray[np.bool_] | None
    dense_labels: NDArray[np.uint8] | None
    dense: Uncertainty
    size: tuple[int, int]
    low_res_size: tuple[int, int]
    refined_pixels: int
    candidate_pixels: int
    budget_hit: bool
    affordable_pixels: int | None
    unrefined: str
    batch: int
    times: StageTimes

    @property
    def refined_share(self) -> float:
        """Refined share of the image, 0 .. 1."""
        return self.refined_pixels / (self.size[0] * self.size[1])
