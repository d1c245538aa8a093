# SPDX-License-Identifier: Apache-2.0
"""The dense stage against its parts, called one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_picture

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.clock import StageClock
from sparserefine_ros.dense.segmenter import open_segmenter
from sparserefine_ros.dense.stage import open_dense_stage
from sparserefine_ros.image import resize_image
from sparserefine_ros.uncertainty import measure_uncertainty


@pytest.mark.parametrize("size", [(48, 64), (51, 67), (1, 5)])
def test_equals_its_parts(tiny_bundle: Path, size: tuple[int, int]) -> None:
    bundle, image = Bundle.open(tiny_bundle), smooth_picture(*size)
    found = open_dense_stage(bundle, threads=1)(image)
    assert found.full_size == size
    small = resize_image(image, bundle.spec.dense.input.low_res_size(size))
    assert np.array_equal(found.low_res_image, small)
    dense = open_segmenter(bundle, backend="auto", device="cpu", threads=1)(small)
    assert found.dense.logits.equal(dense.logits)
    expected = measure_uncertainty(dense.logits)
    assert found.uncertainty.entropy.equal(expected.entropy)
    assert found.uncertainty.labels.equal(expected.labels)


def test_its_stages_are_timed(tiny_bundle: Path) -> None:
    clock = StageClock()
    open_dense_stage(Bundle.open(tiny_bundle), threads=1)(smooth_picture(48, 64), clock)
    took = clock.times().milliseconds
    assert {name for name, ms in took.items() if ms > 0.0} == {"resize", "dense", "entropy"}
