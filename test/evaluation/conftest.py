# SPDX-License-Identifier: Apache-2.0
"""One evaluation that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_data import TinyData

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.evaluation.evaluate import at_full_resolution, evaluate
from sparserefine_ros.evaluation.evaluation import Evaluation
from sparserefine_ros.evaluation.subset import Subset
from sparserefine_ros.pipeline import PipelineOptions

FRAMES = 5


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def evaluate_part(bundle: Bundle, shard: int, shards: int, *, processes: int = 1) -> Evaluation:
    """A part of five frames in three variants."""
    return evaluate(
        bundle,
        TinyData(FRAMES),
        PipelineOptions(threads=1),
        dense_full=at_full_resolution(bundle),
        data="tiny & <random>",
        subset=Subset(0, shard, shards),
        processes=processes,
    )


@pytest.fixture(scope="session")
def whole(bundle: Bundle) -> Evaluation:
    """All frames; do not change it."""
    return evaluate_part(bundle, 1, 1)


@pytest.fixture(scope="session")
def parts(bundle: Bundle) -> list[Evaluation]:
    """Two parts of the same; do not change them."""
    return [evaluate_part(bundle, 2, 2), evaluate_part(bundle, 1, 2)]
