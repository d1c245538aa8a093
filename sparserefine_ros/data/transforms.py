# SPDX-License-Identifier: Apache-2.0
"""Training augmentation of a picture together with its labels.

Scale, crop with at most one dominating class, flip and photometric distortion, as SparseRefine and
MMSegmentation train with. Pictures are uint8 [H, W, 3] RGB, labels uint8 [H, W], 255 ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.datasets import IGNORED_LABEL, Sample


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random transforms.

    Attributes:
        crop: (height, width) of the result.
        scale: smallest and largest factor on the picture size.
        max_class_share: a crop in which one class covers more is drawn again, ten times at most.
        flip: whether to mirror left and right half of the time.
        brightness: largest shift on the 0-255 scale.
        contrast: largest relative change.
        saturation: largest relative change.
        hue: largest shift in degrees.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    flip: bool = True
    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 18.0

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the transformed sample; a pure function of `sample` and the state of `rng`."""
        image, labels = self._scale(sample, rng)
        image, labels = self._crop(image, labels, rng)
        if self.flip and rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        image = self._distort(np.ascontiguousarray(image), rng)
        return Sample(sample.name, image, np.ascontiguousarray(labels))

    def _scale(
        self, sample: Sample, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        # Uniform in the logarithm: halving is as likely as doubling.
        factor = float(np.exp(rng.uniform(*np.log(self.scale))))
        height, width = sample.labels.shape
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        interpolation = cv2.INTER_AREA if factor < 1.0 else cv2.INTER_LINEAR
        image = cv2.resize(sample.image, size, interpolation=interpolation)
        # INTER_NEAREST_EXACT samples pixel centres; INTER_NEAREST would shift by half a pixel.
        labels = cv2.resize(sample.labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        return image, labels  # type: ignore[return-value]

    def _crop(
        self, image: NDArray[np.uint8], labels: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        height, width = self.crop
        below, right = max(0, height - labels.shape[0]), max(0, width - labels.shape[1])
        if below or right:
            top, left = int(rng.integers(below + 1)), int(rng.integers(right + 1))
            pad = ((top, below - top), (left, right - left))
            image = np.pad(
                image, (*pad, (0, 0)), mode="reflect" if _reflects(image, pad) else "edge"
            )
            labels = np.pad(labels, pad, constant_values=IGNORED_LABEL)
        for _ in range(10):
            row = int(rng.integers(labels.shape[0] - height + 1))
            column = int(rng.integers(labels.shape[1] - width + 1))
            window = (slice(row, row + height), slice(column, column + width))
            counts = np.bincount(labels[window].ravel(), minlength=256)[:IGNORED_LABEL]
            if counts.sum() > 0 and counts.max() <= self.max_class_share * counts.sum():
                break
        return image[window], labels[window]

    def _distort(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        if rng.random() < 0.5:
            image = _add(image, rng.uniform(-self.brightness, self.brightness))
        if rng.random() < 0.5:
            image = _multiply(image, rng.uniform(1.0 - self.contrast, 1.0 + self.contrast))
        if rng.random() < 0.5:
            factor = rng.uniform(1.0 - self.saturation, 1.0 + self.saturation)
            hue_shift = rng.uniform(-self.hue, self.hue)
            image = _shift_hue_saturation(image, hue_shift, factor)
        return image


def _reflects(image: NDArray[np.uint8], pad: tuple[tuple[int, int], tuple[int, int]]) -> bool:
    return all(max(pad[axis]) < image.shape[axis] for axis in (0, 1))


def _by_table(image: NDArray[np.uint8], table: NDArray[Any]) -> NDArray[np.uint8]:
    return cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8))  # type: ignore[return-value]


def _add(image: NDArray[np.uint8], shift: float) -> NDArray[np.uint8]:
    return _by_table(image, np.arange(256) + shift)


def _multiply(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    return _by_table(image, np.arange(256) * factor)


def _shift_hue_saturation(
    image: NDArray[np.uint8], hue_degrees: float, saturation: float
) -> NDArray[np.uint8]:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    # OpenCV keeps hue in steps of two degrees, 0 .. 179.
    hue = (np.arange(256) + round(hue_degrees / 2)) % 180
    hsv[..., 0] = cv2.LUT(hsv[..., 0], hue.astype(np.uint8))
    hsv[..., 1] = _multiply(np.ascontiguousarray(hsv[..., 1]), saturation)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)  # type: ignore[return-value]
