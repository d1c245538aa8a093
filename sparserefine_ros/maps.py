# SPDX-License-Identifier: Apache-2.0
"""The full-resolution maps: the dense result by nearest neighbour, the fused one where refined.

Shape legend: H, W full resolution; h, w low resolution; N selected pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.records import Map, Selection, Uncertainty
from sparserefine_ros.selection import expand_map


@dataclass(frozen=True)
class Maps:
    """See `sparserefine_ros.records.Prediction`; None where not asked for."""

    labels: NDArray[np.uint8] | None
    entropy: NDArray[np.float32] | None
    confidence: NDArray[np.uint8] | None
    refined: NDArray[np.bool_] | None
    dense_labels: NDArray[np.uint8] | None


def assemble_maps(
    dense: Uncertainty, selection: Selection, fused: Uncertainty | None, wanted: frozenset[Map]
) -> Maps:
    """Build the wanted maps.

    Args:
        dense: summary of the dense result, [h, w].
        selection: the refined pixels.
        fused: summary of the fused result, [N]; None when nothing was refined.
        wanted: the maps to build.
    """

    def build(of: Callable[[Uncertainty], NDArray[Any]]) -> NDArray[Any]:
        full = expand_map(of(dense), selection.full_size)
        if fused is not None:
            full.reshape(-1)[selection.pixels.numpy()] = of(fused)
        return full

    return Maps(
        labels=build(lambda part: part.labels.numpy()) if Map.LABELS in wanted else None,
        entropy=build(lambda part: part.entropy.numpy()) if Map.ENTROPY in wanted else None,
        confidence=build(confidence_bytes) if Map.CONFIDENCE in wanted else None,
        refined=_selected(selection) if Map.REFINED in wanted else None,
        dense_labels=(
            expand_map(dense.labels.numpy(), selection.full_size)
            if Map.DENSE_LABELS in wanted
            else None
        ),
    )


def _selected(selection: Selection) -> NDArray[np.bool_]:
    mask = np.zeros(selection.full_size, np.bool_)
    mask.reshape(-1)[selection.pixels.numpy()] = True
    return mask


def confidence_bytes(part: Uncertainty) -> NDArray[np.uint8]:
    """uint8 round(255 * top probability)."""
    return np.rint(part.top_probability.numpy() * 255.0).astype(np.uint8)
