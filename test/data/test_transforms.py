# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import smooth_picture
from numpy.typing import NDArray

from sparserefine_ros.data.datasets import Sample
from sparserefine_ros.data.transforms import Augmentation

GEOMETRY_ONLY = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def coded_sample(height: int, width: int, step: int = 1) -> Sample:
    """Grey levels that repeat the labels, in blocks of `step` pixels.

    Ten times the class, so that a picture and labels that part company show.
    """
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 11, (-(-height // step), -(-width // step))).astype(np.uint8)
    labels = coarse.repeat(step, 0).repeat(step, 1)[:height, :width]
    return Sample("coded", (labels * 10)[..., None].repeat(3, 2), labels)


def decoded(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image[..., 1] // 10


def test_size_type_and_memory() -> None:
    augment = Augmentation(crop=(30, 50))
    sample = Sample("a", smooth_picture(75, 101), np.zeros((75, 101), np.uint8))
    for seed in range(12):
        result = augment(sample, np.random.default_rng(seed))
        assert (result.image.dtype, result.image.shape) == (np.uint8, (30, 50, 3))
        assert (result.labels.dtype, result.labels.shape) == (np.uint8, (30, 50))
        assert result.image.flags.c_contiguous
        assert result.labels.flags.c_contiguous
        assert result.name == "a"


def test_a_pure_function_of_sample_and_generator() -> None:
    augment = Augmentation(crop=(30, 50))
    sample = Sample("a", smooth_picture(75, 101), coded_sample(75, 101).labels)
    image, labels = sample.image.copy(), sample.labels.copy()
    first, again, other = (augment(sample, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.image, other.image)
    assert np.array_equal(sample.image, image)
    assert np.array_equal(sample.labels, labels)


def test_picture_and_labels_stay_together_without_scaling() -> None:
    augment = Augmentation(crop=(30, 50), scale=(1.0, 1.0), **GEOMETRY_ONLY)  # type: ignore[arg-type]
    sample = coded_sample(60, 70)
    results = [augment(sample, np.random.default_rng(seed)) for seed in range(20)]
    for result in results:
        assert np.array_equal(decoded(result.image), result.labels)
    # Crops and mirror images of the sample, from many places.
    windows = {
        (flip, row, column)
        for result in results
        for flip in (False, True)
        for row in range(31)
        for column in range(21)
        if np.array_equal(
            result.labels[:, ::-1] if flip else result.labels,
            sample.labels[row : row + 30, column : column + 50],
        )
    }
    assert len(windows) == len(results)
    assert {flip for flip, _, _ in windows} == {False, True}


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_picture_and_labels_stay_together_when_scaled(factor: float) -> None:
    augment = Augmentation(
        crop=(40, 40),
        scale=(factor, factor),
        **GEOMETRY_ONLY,  # type: ignore[arg-type]
    )
    sample = coded_sample(96, 96, step=8)
    for seed in range(8):
        result = augment(sample, np.random.default_rng(seed))
        flat = np.ones((40, 40), bool)
        # Away from block borders, where interpolation mixes two labels.
        for axis in (0, 1):
            for shift in (-1, 1):
                flat &= np.roll(result.labels, shift, axis) == result.labels
        flat[[0, -1]] = flat[:, [0, -1]] = False
        assert flat.mean() > 0.1
        assert np.array_equal(decoded(result.image)[flat], result.labels[flat])


def test_scaling_never_blends_labels() -> None:
    augment = Augmentation(crop=(40, 40), max_class_share=1.0)
    coarse = np.random.default_rng(1).integers(0, 2, (19, 23)).astype(np.uint8) * 10
    labels = coarse.repeat(5, 0).repeat(5, 1)
    sample = Sample("two classes", np.zeros((*labels.shape, 3), np.uint8), labels)
    for seed in range(10):
        found = augment(sample, np.random.default_rng(seed)).labels
        # A blend of classes 0 and 10 would lie between them.
        assert {0, 10} <= set(np.unique(found)) <= {0, 10, 255}


def test_scale_is_as_often_below_as_above_one() -> None:
    # The share of one-pixel stripes that survive tells the factor.
    augment = Augmentation(crop=(16, 16), max_class_share=1.0, **GEOMETRY_ONLY)  # type: ignore[arg-type]
    labels = np.arange(200, dtype=np.uint8)[None].repeat(200, 0)
    sample = Sample("ramp", np.zeros((200, 200, 3), np.uint8), labels)
    factors = []
    for seed in range(200):
        columns = augment(sample, np.random.default_rng(seed)).labels[0].astype(int)
        factors.append(15 / max(1, abs(columns[-1] - columns[0])))
    assert 0.45 < min(factors) < 0.6
    assert 1.7 < max(factors) < 2.2
    assert 0.35 < np.mean(np.array(factors) > 1) < 0.65


def test_small_pictures_are_padded_and_the_padding_ignored() -> None:
    augment = Augmentation(crop=(40, 60), scale=(1.0, 1.0), **GEOMETRY_ONLY)  # type: ignore[arg-type]
    sample = coded_sample(30, 50)
    for seed in range(10):
        result = augment(sample, np.random.default_rng(seed))
        valid = result.labels != 255
        assert valid.sum() == 30 * 50
        assert np.array_equal(decoded(result.image)[valid], result.labels[valid])


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (3, 2)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    augment = Augmentation(crop=(40, 60))
    sample = Sample("tiny", np.full((*size, 3), 9, np.uint8), np.zeros(size, np.uint8))
    for seed in range(5):
        result = augment(sample, np.random.default_rng(seed))
        assert result.labels.shape == (40, 60)
        assert (result.labels == 0).any()
        assert set(np.unique(result.labels)) <= {0, 255}


def test_one_class_does_not_dominate_where_that_can_be_avoided() -> None:
    labels = np.zeros((64, 256), np.uint8)
    labels[:, 192:] = coded_sample(64, 64).labels
    sample = Sample("mostly road", np.zeros((64, 256, 3), np.uint8), labels)
    plain = Augmentation(crop=(32, 32), scale=(1.0, 1.0), max_class_share=1.0)
    strict = dataclasses.replace(plain, max_class_share=0.5)

    def dominated(augment: Augmentation) -> float:
        crops = [augment(sample, np.random.default_rng(seed)).labels for seed in range(60)]
        return float(np.mean([(crop == 0).mean() > 0.5 for crop in crops]))

    assert dominated(plain) > 0.5
    assert dominated(strict) < dominated(plain) / 2


def test_a_picture_of_one_class_still_gives_a_crop() -> None:
    sample = Sample("sky", np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8))
    result = Augmentation(crop=(32, 32), scale=(1.0, 1.0))(sample, np.random.default_rng(1))
    assert (result.labels == 0).all()


def test_an_unlabelled_picture_still_gives_a_crop() -> None:
    sample = Sample("void", np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 255, np.uint8))
    result = Augmentation(crop=(32, 32))(sample, np.random.default_rng(1))
    assert (result.labels == 255).all()


def test_distortion_stays_in_its_ranges() -> None:
    augment = Augmentation(
        crop=(8, 8), scale=(1.0, 1.0), flip=False, contrast=0.0, saturation=0.0, hue=0.0
    )
    sample = Sample("grey", np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.uint8))
    levels = np.array(
        [augment(sample, np.random.default_rng(seed)).image[0, 0, 0] for seed in range(200)]
    ).astype(int)
    assert levels.min() >= 68
    assert levels.max() <= 132
    assert levels.max() - levels.min() > 50
    assert 0.35 < np.mean(levels == 100) < 0.65


def test_hue_and_saturation_leave_grey_and_brightness_alone() -> None:
    augment = Augmentation(crop=(8, 8), scale=(1.0, 1.0), flip=False, brightness=0.0, contrast=0.0)
    labels = np.zeros((8, 8), np.uint8)
    grey = Sample("grey", np.full((8, 8, 3), 100, np.uint8), labels)
    colour = Sample("red", np.full((8, 8, 3), (200, 60, 40), np.uint8), labels)
    changed = 0
    for seed in range(30):
        assert (augment(grey, np.random.default_rng(seed)).image == 100).all()
        pixel = augment(colour, np.random.default_rng(seed)).image[0, 0].astype(int)
        assert pixel.max() == 200
        # Hue moves by at most 18 degrees: red remains the largest.
        assert pixel.argmax() == 0
        changed += tuple(pixel) != (200, 60, 40)
    assert 5 < changed < 25
