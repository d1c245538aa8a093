# SPDX-License-Identifier: Apache-2.0
"""Selectors: what decides, from the dense result, which pixels are refined.

Each gives every low-resolution pixel a score; the blocks above the selector's threshold are
refined, those of highest score first where the pixel budget is short (SparseRefine, section 3.2
and table 5a).

Shape legend: H, W full resolution; h, w low resolution; C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.bundle_spec import (
    EntropySelectorSpec,
    LearnableSelectorSpec,
    MagnitudeSelectorSpec,
    RandomSelectorSpec,
)
from sparserefine_ros.image import Normaliser
from sparserefine_ros.oracle import truth_for_oracle
from sparserefine_ros.records import IGNORED_LABEL, DenseOutput, Selection, Uncertainty
from sparserefine_ros.selection import expand_map, select_above, selection_from_pixels
from sparserefine_ros.weights import load_weights


class Selector:
    """Selects by a score; subclasses say which.

    Attributes:
        kind: name of the score.
        threshold: blocks whose score is above it are selected.
        max_pixels: pixel budget; 0 for no limit.
    """

    kind: str

    def __init__(self, threshold: float, max_pixels: int) -> None:
        self.threshold, self.max_pixels = threshold, max_pixels

    def score(
        self, low_res_image: NDArray[np.uint8], dense: DenseOutput, uncertainty: Uncertainty
    ) -> Tensor:
        """Score of each low-resolution pixel, float32 [h, w].

        Args:
            low_res_image: uint8 [h, w, 3] RGB, what the dense model saw.
            dense: what it returned.
            uncertainty: its summary.
        """
        raise NotImplementedError

    def __call__(
        self,
        low_res_image: NDArray[np.uint8],
        dense: DenseOutput,
        uncertainty: Uncertainty,
        full_size: tuple[int, int],
        truth: NDArray[np.uint8] | None = None,
        *,
        at_most: int | None = None,
    ) -> Selection:
        """Select pixels of a picture of `full_size` (H, W); only an oracle looks at the truth.

        `at_most` tightens the pixel budget for this picture; 0 selects nothing.
        """
        score, limit = self.score(low_res_image, dense, uncertainty), self._limit(at_most)
        return select_above(score, full_size, threshold=self.threshold, max_pixels=limit)

    def _limit(self, at_most: int | None) -> int | None:
        limits = [limit for limit in (self.max_pixels or None, at_most) if limit is not None]
        return min(limits, default=None)


class EntropySelector(Selector):
    """Score: entropy of the dense result, nats."""

    kind = "entropy"

    def score(
        self, low_res_image: NDArray[np.uint8], dense: DenseOutput, uncertainty: Uncertainty
    ) -> Tensor:
        """See `Selector`."""
        return uncertainty.entropy


class MagnitudeSelector(Selector):
    """Score: L2 norm of the features that the dense model's classifier sees."""

    kind = "magnitude"

    def score(
        self, low_res_image: NDArray[np.uint8], dense: DenseOutput, uncertainty: Uncertainty
    ) -> Tensor:
        """See `Selector`."""
        assert dense.features is not None  # the segmenter returns what the bundle uses
        return torch.from_numpy(expand_map(dense.features.norm(dim=0).numpy(), dense.size))


class RandomSelector(Selector):
    """Score: noise, the same in every picture of a size."""

    kind = "random"

    def __init__(self, spec: RandomSelectorSpec) -> None:
        super().__init__(1.0 - spec.density, spec.max_pixels)
        self._seed = spec.seed

    def score(
        self, low_res_image: NDArray[np.uint8], dense: DenseOutput, uncertainty: Uncertainty
    ) -> Tensor:
        """See `Selector`."""
        # In (0, 1], so that a density of 1 selects everything.
        noise = 1.0 - np.random.default_rng(self._seed).random(dense.size, np.float32)
        return torch.from_numpy(noise)


class OracleSelector(Selector):
    """Selects the labelled pixels that the dense result gets wrong: the bound of all selectors."""

    kind = "oracle"

    def __call__(
        self,
        low_res_image: NDArray[np.uint8],
        dense: DenseOutput,
        uncertainty: Uncertainty,
        full_size: tuple[int, int],
        truth: NDArray[np.uint8] | None = None,
        *,
        at_most: int | None = None,
    ) -> Selection:
        """Select by the labels, uint8 [H, W], 255 ignored.

        Raises:
            ConfigurationError: no labels.
        """
        truth = truth_for_oracle(truth, "selector")
        labels = expand_map(uncertainty.labels.numpy(), full_size)
        wrong = (truth != IGNORED_LABEL) & (labels != truth)
        return selection_from_pixels(wrong, dense.size, max_pixels=self._limit(at_most))


class SelectorNet(nn.Module):
    """The learnable selector: two convolutions see the picture, a small MLP joins the dense result.

    SparseRefine, section 4.3 and its release: 3-16-16 channels, then 32-32-1.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.see = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.judge = nn.Sequential(
            nn.Conv2d(16 + classes + 1, 32, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 1, 1),
        )

    def forward(self, images: Tensor, logits: Tensor, entropy: Tensor) -> Tensor:
        """Logit of the dense result being wrong, [B, h, w].

        Args:
            images: normalised float32 [B, 3, h, w].
            logits: of the dense model, float32 [B, C, h, w].
            entropy: nats, float32 [B, h, w].
        """
        evidence = torch.cat([self.see(images), logits, entropy[:, None]], 1)
        return self.judge(evidence)[:, 0]  # type: ignore[no-any-return]


class LearnableSelector(Selector):
    """Score: probability, after `SelectorNet`, that the dense result is wrong."""

    kind = "learnable"

    def __init__(self, net: SelectorNet, bundle: Bundle, threshold: float, max_pixels: int) -> None:
        super().__init__(threshold, max_pixels)
        self._net = net.eval()
        self._normaliser = Normaliser(bundle.spec.dense.input.normalisation)

    @torch.inference_mode()
    def score(
        self, low_res_image: NDArray[np.uint8], dense: DenseOutput, uncertainty: Uncertainty
    ) -> Tensor:
        """See `Selector`."""
        image = torch.from_numpy(self._normaliser.images_to_nchw([low_res_image]))
        wrong: Tensor = self._net(image, dense.logits[None], uncertainty.entropy[None])
        return wrong[0].sigmoid().contiguous()


def _learnable(spec: LearnableSelectorSpec, bundle: Bundle) -> Selector:
    net = SelectorNet(len(bundle.spec.classes))
    load_weights(net, bundle.path(spec.file), section="selector")
    return LearnableSelector(net, bundle, spec.threshold, spec.max_pixels)


def _magnitude(spec: MagnitudeSelectorSpec, bundle: Bundle) -> Selector:
    return MagnitudeSelector(spec.threshold, spec.max_pixels)


def _entropy(spec: EntropySelectorSpec, bundle: Bundle) -> Selector:
    return EntropySelector(spec.threshold_nats, spec.max_pixels)


_OPENERS: Final[Mapping[str, Callable[[Any, Bundle], Selector]]] = {
    "entropy": _entropy,
    "magnitude": _magnitude,
    "learnable": _learnable,
    "random": lambda spec, bundle: RandomSelector(spec),
    "oracle": lambda spec, bundle: OracleSelector(0.0, spec.max_pixels),
}


def open_selector(bundle: Bundle) -> Selector:
    """The selector of a bundle; one by entropy that selects nothing when it has none.

    Raises:
        BundleError: weights that do not fit.
    """
    spec = bundle.spec.selector
    if spec is None:
        return EntropySelector(float("inf"), 0)
    return _OPENERS[spec.kind](spec, bundle)
