# SPDX-License-Identifier: Apache-2.0
"""What is said of crops that pictures cannot fill."""

from __future__ import annotations

import pytest

from sparserefine_ros.bundle_spec import DenseInput
from sparserefine_ros.training.crops import check_crop
from sparserefine_ros.training.recipe import AugmentationRecipe

TAKEN = DenseInput(scale=0.5)


@pytest.mark.parametrize(
    ("crop", "largest", "told"),
    [((32, 48), 1.0, False), ((34, 48), 1.0, True), ((64, 96), 2.0, False), ((64, 98), 2.0, True)],
)
def test_crops_larger_than_pictures_get(
    crop: tuple[int, int], largest: float, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    augmentation = AugmentationRecipe(crop=crop, scale=(0.5, largest))
    check_crop(TAKEN, augmentation, (32, 48))
    assert ("the rest is padding" in caplog.text) == told


def test_one_process_of_several_tells(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "1")
    check_crop(TAKEN, AugmentationRecipe(crop=(640, 640)), (32, 48))
    assert not caplog.text
