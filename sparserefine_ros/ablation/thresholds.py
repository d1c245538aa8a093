# SPDX-License-Identifier: Apache-2.0
"""Thresholds that give a wanted density, so that selectors are compared at the same cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.bundle_spec import (
    EntropySelectorSpec,
    MagnitudeSelectorSpec,
    SelectorSpec,
)
from sparserefine_ros.data.datasets import SegmentationDataset
from sparserefine_ros.dense.stage import open_dense_stage
from sparserefine_ros.evaluation.subset import ALL_FRAMES, Subset
from sparserefine_ros.selectors import open_selector

# Enough for a quantile, little enough for memory.
_FRAMES_AT_MOST: Final = 100


@dataclass(frozen=True)
class Scores:
    """Scores of the low-resolution pixels of many frames.

    What they say is rounded: measured again on another processor, it must not be another recipe.

    Attributes:
        values: float32 [M].
    """

    values: NDArray[np.float32]

    def threshold_at(self, density: float) -> float:
        """The threshold above which this share of the pixels lies; 0 for all of them."""
        return 0.0 if density >= 1.0 else _rounded(float(np.quantile(self.values, 1.0 - density)))

    def density_at(self, threshold: float) -> float:
        """Share of the pixels above a threshold, 0 .. 1."""
        return _rounded(float((self.values > threshold).mean()))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def measure_scores(
    bundle: Bundle, dataset: SegmentationDataset, subset: Subset = ALL_FRAMES
) -> dict[str, Scores]:
    """Scores of the selectors "entropy" and, where the dense model gives features, "magnitude".

    Args:
        bundle: has the dense model.
        dataset: has the frames.
        subset: which of them will be evaluated; a hundred of these are enough.
    """
    specs: list[SelectorSpec] = [EntropySelectorSpec(threshold_nats=0.0)]
    if bundle.spec.dense.features is not None:
        specs.append(MagnitudeSelectorSpec(kind="magnitude", threshold=0.0))
    found: dict[str, list[NDArray[np.float32]]] = {}
    for spec in specs:
        chosen = bundle.spec.model_copy(update={"selector": spec})
        of_kind = _scores_of(Bundle(bundle.folder, chosen, bundle.digest), dataset, subset)
        found[spec.kind] = list(tqdm(of_kind, desc=f"scores by {spec.kind}", unit="frame"))
    return {kind: Scores(np.concatenate(parts)) for kind, parts in found.items()}


def _scores_of(
    bundle: Bundle, dataset: SegmentationDataset, subset: Subset
) -> Iterable[NDArray[np.float32]]:
    look, selector = open_dense_stage(bundle), open_selector(bundle)
    indices = subset.indices(len(dataset))
    count = min(len(indices), _FRAMES_AT_MOST)
    for place in np.linspace(0, len(indices) - 1, count).round().astype(int).tolist():
        found = look(dataset[indices[place]].image)
        score = selector.score(found.low_res_image, found.dense, found.uncertainty)
        yield score.numpy().ravel()
