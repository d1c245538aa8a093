# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import smooth_picture
from numpy.typing import NDArray

from sparserefine_ros.errors import ImageError
from sparserefine_ros.image import MAX_SIDE, Normalisation, Normaliser, check_image, resize_image

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class TestCheckImage:
    @pytest.mark.parametrize(("height", "width"), [(1, 1), (1, MAX_SIDE), (MAX_SIDE, 1), (3, 5)])
    def test_accepts(self, height: int, width: int) -> None:
        check_image(np.zeros((height, width, 3), np.uint8))

    @pytest.mark.parametrize(
        ("image", "reason", "message"),
        [
            (np.zeros((4, 5, 3), np.float32), "image", r"got float32 \[4, 5, 3\]"),
            (np.zeros((4, 5, 3), np.int8), "image", "got int8"),
            (np.zeros((4, 5, 4), np.uint8), "image", r"got uint8 \[4, 5, 4\]"),
            (np.zeros((3, 4, 5), np.uint8), "image", r"got uint8 \[3, 4, 5\]"),
            (np.zeros((4, 5), np.uint8), "image", r"got uint8 \[4, 5\]"),
            (np.zeros((1, 4, 5, 3), np.uint8), "image", r"got uint8 \[1, 4, 5, 3\]"),
            (np.zeros((0, 5, 3), np.uint8), "empty", "got 5 x 0"),
            (np.zeros((5, 0, 3), np.uint8), "empty", "got 0 x 5"),
            (np.zeros((1, MAX_SIDE + 1, 3), np.uint8), "too_large", "crop or resize"),
            (np.zeros((MAX_SIDE + 1, 1, 3), np.uint8), "too_large", f"got 1 x {MAX_SIDE + 1}"),
        ],
        ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
    )
    def test_refuses(self, image: NDArray[np.uint8], reason: str, message: str) -> None:
        with pytest.raises(ImageError, match=message) as caught:
            check_image(image)
        assert caught.value.reason == reason


def overlaps(full: int, low: int) -> NDArray[np.float64]:
    """Share of each full-resolution row in each low-resolution row, [low, full]; rows sum to 1."""
    edges = np.arange(low + 1) * full / low
    cells = np.arange(full)
    shares = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.clip(shares, 0, None) * low / full


class TestResize:
    @pytest.mark.parametrize(
        ("full", "low"),
        [
            ((64, 48), (32, 24)),
            ((75, 101), (36, 52)),
            ((90, 91), (17, 90)),
            ((33, 7), (1, 1)),
            ((20, 30), (20, 15)),
        ],
    )
    def test_shrinking_averages_pixel_areas(
        self, full: tuple[int, int], low: tuple[int, int]
    ) -> None:
        image = np.random.default_rng(1).integers(0, 256, (*full, 3)).astype(np.uint8)
        result = resize_image(image, low)
        rows, columns = overlaps(full[0], low[0]), overlaps(full[1], low[1])
        expected = np.einsum("ih,jw,hwc->ijc", rows, columns, image.astype(np.float64))
        assert result.dtype == np.uint8
        # Rounding to whole levels, half of one, plus OpenCV's own float32 sums.
        assert np.abs(result - expected).max() <= 0.51

    def test_growing_is_bilinear(self) -> None:
        image = np.array([[[0, 0, 0], [100, 200, 40]]], np.uint8)
        result = resize_image(image, (2, 4))
        assert result.shape == (2, 4, 3)
        # Pixel centres at 0.25 and 0.75 between the two, the ends replicated.
        assert result[:, :, 1].tolist() == [[0, 50, 150, 200]] * 2

    def test_same_size_is_the_same_picture(self, picture: NDArray[np.uint8]) -> None:
        assert np.array_equal(resize_image(picture, (75, 101)), picture)

    @pytest.mark.parametrize("size", [(4, 4), (1, 9), (9, 1)])
    def test_one_pixel(self, size: tuple[int, int]) -> None:
        image = np.array([[[7, 8, 9]]], np.uint8)
        assert (resize_image(image, size) == [7, 8, 9]).all()
        assert resize_image(image, size).shape == (*size, 3)


class TestNormaliser:
    @pytest.mark.parametrize("size", [(75, 101), (1, 1), (1, 17), (17, 1)])
    @pytest.mark.parametrize("order", ["RGB", "BGR"])
    def test_images_to_nchw(self, order: str, size: tuple[int, int]) -> None:
        image = smooth_picture(*size)
        planes = Normaliser(Normalisation(order, MEAN, STD)).images_to_nchw([image])  # type: ignore[arg-type]
        channels = image if order == "RGB" else image[:, :, ::-1]
        expected = ((channels.astype(np.float64) - MEAN) / STD).transpose(2, 0, 1)[None]
        assert planes.dtype == np.float32
        assert planes.flags.c_contiguous
        # One subtraction and one division in float32.
        np.testing.assert_allclose(planes, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("order", ["RGB", "BGR"])
    def test_pixels_to_features(self, order: str, picture: NDArray[np.uint8]) -> None:
        pixels = [0, 3, 100, 101, 75 * 101 - 1]
        features = Normaliser(Normalisation(order, MEAN, STD)).pixels_to_features(  # type: ignore[arg-type]
            picture, torch.tensor(pixels)
        )
        for row, pixel in zip(features.tolist(), pixels, strict=True):
            rgb = picture[pixel // 101, pixel % 101].astype(float)
            values = rgb if order == "RGB" else rgb[::-1]
            assert row == pytest.approx(((values - MEAN) / STD).tolist(), rel=1e-5, abs=1e-6)
        assert features.dtype == torch.float32

    def test_every_byte_is_exact(self) -> None:
        ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
        normaliser = Normaliser(Normalisation("RGB", (0.0, 0.0, 0.0), (1.0, 2.0, 0.5)))
        planes = normaliser.images_to_nchw([ramp])
        values = np.arange(256, dtype=np.float32)
        assert np.array_equal(planes[0, :, 0], [values, values / 2, values * 2])
        features = normaliser.pixels_to_features(ramp, torch.arange(256))
        assert np.array_equal(features.numpy().T, planes[0, :, 0])

    def test_no_pixels(self, picture: NDArray[np.uint8]) -> None:
        normaliser = Normaliser(Normalisation("BGR", MEAN, STD))
        features = normaliser.pixels_to_features(picture, torch.zeros(0, dtype=torch.int64))
        assert features.shape == (0, 3)
