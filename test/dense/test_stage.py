# SPDX-License-Identifier: Apache-2.0
"""The dense stage against its parts, called one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from conftest import smooth_picture
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.options import EngineOptions
from sparserefine_ros.dense.segmenter import Segmenter, open_segmenter
from sparserefine_ros.dense.stage import DenseStage, open_dense_stage
from sparserefine_ros.image import resize_image
from sparserefine_ros.records import DenseOutput
from sparserefine_ros.uncertainty import measure_uncertainty


@pytest.mark.parametrize("size", [(48, 64), (51, 67), (1, 5)])
def test_equals_its_parts(tiny_bundle: Path, size: tuple[int, int]) -> None:
    bundle, image = Bundle.open(tiny_bundle), smooth_picture(*size)
    found = open_dense_stage(bundle, threads=1)(image)
    assert found.full_size == size
    small = resize_image(image, bundle.spec.dense.input.low_res_size(size))
    assert np.array_equal(found.low_res_image, small)
    (dense,) = open_segmenter(bundle, backend="auto", device="cpu", threads=1)([small])
    assert found.dense.logits.equal(dense.logits)
    expected = measure_uncertainty(dense.logits)
    assert found.uncertainty.entropy.equal(expected.entropy)
    assert found.uncertainty.labels.equal(expected.labels)


def test_its_stages_are_timed(tiny_bundle: Path) -> None:
    found = open_dense_stage(Bundle.open(tiny_bundle), threads=1)(smooth_picture(48, 64))
    took = found.times.milliseconds
    assert {name for name, ms in took.items() if ms > 0.0} == {"resize", "dense", "entropy"}


@pytest.mark.parametrize(
    ("max_batch", "batches"),
    [(1, [1, 1, 1, 1, 1]), (2, [2, 1, 2, 1, 1]), (3, [3, 1, 3, 1, 3]), (8, [3, 1, 3, 1, 3])],
)
def test_pictures_of_one_size_go_together(
    tiny_bundle: Path, max_batch: int, batches: list[int]
) -> None:
    bundle, seen = Bundle.open(tiny_bundle), []
    segmenter = open_segmenter(
        bundle,
        backend="auto",
        device="cpu",
        threads=1,
        engine=EngineOptions(max_batch=max_batch),
    )

    def watched(images: Sequence[NDArray[np.uint8]]) -> list[DenseOutput]:
        seen.append(len(images))
        return segmenter(images)

    watched.description = "watched"  # type: ignore[attr-defined]
    sizes = [(48, 64), (80, 67), (48, 64), (48, 20), (47, 64)]
    images = [smooth_picture(*size, seed=seed) for seed, size in enumerate(sizes)]
    stage = DenseStage(cast("Segmenter", watched), bundle.spec.dense.input, max_batch)
    found = stage.run_batch(images)
    assert sum(seen) == len(images)
    assert max(seen) <= max_batch
    alone = open_dense_stage(bundle, threads=1)
    for image, each in zip(images, found, strict=True):
        expected = alone(image)
        assert each.full_size == image.shape[:2]
        assert np.array_equal(each.low_res_image, expected.low_res_image)
        torch.testing.assert_close(each.dense.logits, expected.dense.logits)
        assert each.uncertainty.labels.equal(expected.uncertainty.labels)
        assert each.times.milliseconds["dense"] > 0.0
    assert [each.batch for each in found] == batches


def test_no_pictures(tiny_bundle: Path) -> None:
    assert open_dense_stage(Bundle.open(tiny_bundle), threads=1).run_batch([]) == []
