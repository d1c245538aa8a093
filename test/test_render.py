# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import smooth_picture
from numpy.typing import NDArray

from sparserefine_ros.render import (
    BROKEN_COLOUR,
    FIXED_COLOUR,
    STILL_WRONG_COLOUR,
    contact_sheet,
    draw_changes,
    draw_entropy,
    draw_legend,
    draw_overlay,
    draw_refined,
    narrow,
)

HEIGHT, WIDTH = 61, 83


def make_palette() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (256, 3), np.uint8)


def make_labels() -> NDArray[np.uint8]:
    return np.random.default_rng(6).integers(0, 256, (HEIGHT, WIDTH), np.uint8)


def block() -> NDArray[np.bool_]:
    """Rows 20 .. 39 and columns 30 .. 59 refined."""
    refined = np.zeros((HEIGHT, WIDTH), np.bool_)
    refined[20:40, 30:60] = True
    return refined


def holds(sheet: NDArray[np.uint8], picture: NDArray[np.uint8]) -> bool:
    """Whether `picture` lies somewhere in `sheet`, byte for byte."""
    height, width = picture.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (height, width, 3))
    corners = (windows[:, :, 0, 0, 0] == picture[0, 0]).all(-1)
    return any(np.array_equal(windows[y, x, 0], picture) for y, x in np.argwhere(corners))


class TestOverlay:
    @pytest.mark.parametrize("opacity", [0.0, 0.3, 0.5, 1.0])
    def test_colours_are_blended_over_the_picture(self, opacity: float) -> None:
        image, labels, palette = smooth_picture(HEIGHT, WIDTH), make_labels(), make_palette()
        overlay = draw_overlay(image, labels, palette, opacity=opacity)
        expected = (1 - opacity) * image + opacity * palette[labels].astype(float)
        assert overlay.dtype == np.uint8
        np.testing.assert_allclose(overlay, expected, atol=0.51)

    def test_the_arguments_stay_as_they_are(self) -> None:
        image, labels, palette, refined = (
            smooth_picture(HEIGHT, WIDTH), make_labels(), make_palette(), block(),
        )  # fmt: skip
        copies = [array.copy() for array in (image, labels, palette, refined)]
        for array in (image, labels, palette, refined):
            array.flags.writeable = False
        draw_overlay(image, labels, palette, refined=refined, opacity=0.0)
        for array, copy in zip((image, labels, palette, refined), copies, strict=True):
            np.testing.assert_array_equal(array, copy)

    def test_refined_pixels_get_a_white_rim_and_a_dark_one_around(self) -> None:
        image = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        overlay = draw_overlay(image, labels, make_palette(), refined=block(), opacity=0.0)
        expected = np.zeros((HEIGHT, WIDTH), int)
        expected[19:41, 29:61] = -1  # darker
        expected[20:40, 30:60] = 1  # white
        expected[21:39, 31:59] = 0  # untouched
        change = overlay.astype(int) - 120
        np.testing.assert_array_equal(np.sign(change), expected[..., None].repeat(3, -1))
        assert (overlay[expected == 1] == 255).all()
        assert (change[expected == -1] < -50).all()

    def test_the_rim_is_wider_on_a_large_picture(self) -> None:
        image = np.full((40, 4096, 3), 120, np.uint8)
        refined = np.zeros((40, 4096), np.bool_)
        refined[10:30, 1000:1100] = True
        labels = np.zeros((40, 4096), np.uint8)
        overlay = draw_overlay(image, labels, make_palette(), refined=refined, opacity=0.0)
        assert (overlay[20, 1000:1003] == 255).all()
        assert (overlay[20, 1003:1097] == 120).all()

    @pytest.mark.parametrize("everywhere", [False, True])
    def test_nothing_and_everything_have_no_rim(self, everywhere: bool) -> None:
        image, labels, palette = smooth_picture(HEIGHT, WIDTH), make_labels(), make_palette()
        refined = np.full((HEIGHT, WIDTH), everywhere)
        np.testing.assert_array_equal(
            draw_overlay(image, labels, palette, refined=refined),
            draw_overlay(image, labels, palette),
        )

    def test_slices_are_accepted(self) -> None:
        image, labels, palette = smooth_picture(HEIGHT, WIDTH), make_labels(), make_palette()
        refined = block()
        cut = (slice(3, -2, 2), slice(5, -1, 2))
        np.testing.assert_array_equal(
            draw_overlay(image[cut], labels[cut], palette, refined=refined[cut]),
            draw_overlay(
                image[cut].copy(), labels[cut].copy(), palette, refined=refined[cut].copy()
            ),
        )

    def test_maps_of_another_size_are_refused(self) -> None:
        image, labels, palette = smooth_picture(HEIGHT, WIDTH), make_labels(), make_palette()
        with pytest.raises(ValueError, match=r"labels \[61, 83\].*got \[60, 83\]"):
            draw_overlay(image, labels[1:], palette)
        with pytest.raises(ValueError, match=r"refined \[61, 83\].*got \[61, 82\]"):
            draw_overlay(image, labels, palette, refined=block()[:, 1:])

    @pytest.mark.parametrize("opacity", [-0.1, 1.1, math.nan])
    def test_an_impossible_opacity_is_refused(self, opacity: float) -> None:
        image, labels = smooth_picture(HEIGHT, WIDTH), make_labels()
        with pytest.raises(ValueError, match=r"opacity of 0 \.\. 1"):
            draw_overlay(image, labels, make_palette(), opacity=opacity)


class TestEntropy:
    def test_more_entropy_is_brighter(self) -> None:
        ramp = np.linspace(0, 2.0, 64, dtype=np.float32)[None].repeat(3, 0)
        drawn = draw_entropy(ramp, max_nats=2.0)
        assert drawn.shape == (3, 64, 3)
        assert drawn.dtype == np.uint8
        light = drawn[1].astype(float) @ [0.299, 0.587, 0.114]
        assert (np.diff(light) > 0).all()
        assert light[0] < 5
        assert light[-1] > 220

    def test_the_middle_is_red_not_blue(self) -> None:
        drawn = draw_entropy(np.full((2, 2), 0.6, np.float32), max_nats=1.0)
        red, _, blue = drawn[0, 0].astype(int)
        assert red > blue + 100

    def test_what_is_above_the_limit_looks_like_the_limit(self) -> None:
        drawn = draw_entropy(np.array([[1.0, 1.5, 99.0]], np.float32), max_nats=1.0)
        assert (drawn == drawn[:, :1]).all()

    @pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
    def test_an_impossible_limit_is_refused(self, limit: float) -> None:
        with pytest.raises(ValueError, match="max_nats above 0"):
            draw_entropy(np.zeros((2, 2), np.float32), max_nats=limit)


class TestRefined:
    def test_refined_pixels_are_orange_and_the_rest_is_dim_and_grey(self) -> None:
        image, refined = smooth_picture(HEIGHT, WIDTH), block()
        drawn = draw_refined(image, refined).astype(int)
        rest = drawn[~refined]
        assert (rest == rest[:, :1]).all()
        np.testing.assert_allclose(
            rest[:, 0], 0.45 * (image[~refined] @ np.array([0.299, 0.587, 0.114])), atol=1.5
        )
        inside = drawn[refined]
        assert (inside[:, 0] > inside[:, 1] + 30).all()
        assert (inside[:, 1] > inside[:, 2] + 30).all()

    def test_a_map_of_another_size_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"refined \[61, 83\]"):
            draw_refined(smooth_picture(HEIGHT, WIDTH), block().T)


class TestLegend:
    def test_every_class_shows_its_colour_and_name_in_order(self) -> None:
        palette = make_palette()
        legend = draw_legend(("road", "sign_symbol", "sky"), palette)
        tops = []
        for colour in palette[:3]:
            rows = np.flatnonzero((legend == colour).all(-1).sum(1) > 30)
            assert len(rows) >= 15
            tops.append(int(rows[0]))
        assert tops == sorted(tops)
        for top in tops:
            dark = legend[top : top + 20, 80:].max(-1) < 100
            assert dark.sum() > 20, "the name is written beside its colour"

    def test_long_names_fit(self) -> None:
        name = "a class with quite a long name " * 3
        legend = draw_legend((name,), make_palette())
        assert (legend[:, -4:] == 255).all()
        assert legend.shape[1] > draw_legend(("road",), make_palette()).shape[1] + 300


class TestContactSheet:
    @pytest.mark.parametrize("captions", [(), ("one", "two", "three", "four", "five")])
    def test_every_picture_is_there_byte_for_byte(self, captions: tuple[str, ...]) -> None:
        sizes = [(20, 30), (31, 17), (8, 40), (20, 30), (1, 1)]
        pictures = [smooth_picture(*size, seed=seed) for seed, size in enumerate(sizes)]
        sheet = contact_sheet(pictures, columns=2, captions=captions)
        assert sheet.dtype == np.uint8
        assert 2 * 40 < sheet.shape[1] < 2 * 40 + 40
        assert all(holds(sheet, picture) for picture in pictures)

    def test_pictures_run_from_left_to_right_and_down(self) -> None:
        greys = [np.full((10, 10, 3), level, np.uint8) for level in (100, 120, 140)]
        sheet = contact_sheet(greys, columns=2)
        (y0, x0), (y1, x1), (y2, x2) = (
            np.argwhere((sheet == level).all(-1))[0] for level in (100, 120, 140)
        )
        assert y0 == y1 < y2
        assert x0 == x2 < x1

    def test_a_caption_is_written_below_its_picture_and_kept_within_its_cell(self) -> None:
        pictures = [np.full((40, 120, 3), 90, np.uint8) for _ in range(2)]
        plain = contact_sheet(pictures, columns=2, captions=("", ""))
        sheet = contact_sheet(pictures, columns=2, captions=("far too long a text " * 9, ""))
        changed = np.argwhere((sheet != plain).any(-1))
        assert len(changed) > 50
        assert changed[:, 0].min() >= 48
        assert changed[:, 1].max() <= 8 + 120

    @pytest.mark.parametrize(
        ("pictures", "columns", "captions"), [(0, 1, 0), (2, 0, 0), (2, 2, 1), (2, 2, 3)]
    )
    def test_impossible_requests_are_refused(
        self, pictures: int, columns: int, captions: int
    ) -> None:
        with pytest.raises(ValueError, match="at least one picture, at least one column"):
            contact_sheet(
                [smooth_picture(9, 9)] * pictures, columns=columns, captions=["x"] * captions
            )


def test_changes_by_colour() -> None:
    truth = np.array([[1, 1, 1, 1, 1, 255, 255]], np.uint8)
    before = np.array([[0, 1, 0, 1, 0, 0, 1]], np.uint8)
    after = np.array([[1, 0, 2, 1, 0, 1, 0]], np.uint8)
    fixed, broken, still, right, same, *unlabelled = draw_changes(truth, before, after)[0].tolist()
    assert (tuple(fixed), tuple(broken)) == (FIXED_COLOUR, BROKEN_COLOUR)
    assert tuple(still) == tuple(same) == STILL_WRONG_COLOUR
    assert max(right) < 40
    assert unlabelled == [[0, 0, 0], [0, 0, 0]]


def test_narrow_keeps_proportions_and_small_pictures() -> None:
    image = smooth_picture(HEIGHT, WIDTH)
    assert narrow(image, 40).shape == (29, 40, 3)
    assert narrow(image, WIDTH) is image
    assert narrow(smooth_picture(1, 90), 30).shape == (1, 30, 3)
    assert narrow(image, WIDTH, HEIGHT) is image
    assert narrow(image, WIDTH, 30).shape == (30, 41, 3)
    assert narrow(image, 20, 30).shape == (15, 20, 3)
    assert narrow(smooth_picture(90, 1), 30, 30).shape == (30, 1, 3)
