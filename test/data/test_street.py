# SPDX-License-Identifier: Apache-2.0
"""Procedural street scenes."""

import numpy as np
import pytest

from sparserefine_ros.data.street import CLASS_NAMES, StreetScene

POLE = CLASS_NAMES.index("pole")
SEEDS = range(40, 48)


@pytest.mark.parametrize(
    ("height", "width"), [(16, 16), (17, 333), (181, 97), (90, 121)], ids=lambda size: str(size)
)
def test_every_pixel_of_any_size_has_a_colour_and_a_class(height, width):
    frame = StreetScene(3).render(1.0, height=height, width=width)
    assert frame.image.shape == (height, width, 3)
    assert frame.labels.shape == (height, width)
    assert frame.image.dtype == frame.labels.dtype == np.uint8
    valid = frame.labels < len(CLASS_NAMES)
    assert (valid | (frame.labels == 255)).all()
    assert valid.mean() > 0.99
    assert frame.image.std() > 5


def test_equal_arguments_give_equal_frames():
    first = StreetScene(5).render(2.5, height=120, width=160)
    between = StreetScene(6).render(9.0, height=120, width=160)
    again = StreetScene(5).render(2.5, height=120, width=160)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.labels != between.labels).mean() > 0.05


def test_rendering_in_another_order_changes_nothing():
    scene = StreetScene(11)
    forward = [scene.render(t, height=60, width=80).image for t in (0.0, 40.0, 200.0)]
    backward = [scene.render(t, height=60, width=80).image for t in (200.0, 40.0, 0.0)]
    for one, other in zip(forward, reversed(backward), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("time_s", [-500.0, 0.0, 1e5], ids=["before", "start", "a-day-later"])
def test_the_street_never_ends(time_s):
    frame = StreetScene(-8).render(time_s, height=90, width=120)
    assert len(np.unique(frame.labels)) >= 5


def test_each_class_shows_in_at_least_a_third_of_the_scenes():
    seen = np.zeros(len(CLASS_NAMES))
    for seed in SEEDS:
        scene = StreetScene(seed)
        labels = [scene.render(t, height=120, width=160).labels for t in (0.0, 2.0, 4.0)]
        seen += np.bincount(np.ravel(labels), minlength=256)[: len(CLASS_NAMES)] > 0
    assert dict(zip(CLASS_NAMES, seen >= len(SEEDS) / 3, strict=True)) == dict.fromkeys(
        CLASS_NAMES, True
    )


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_two_sizes_show_the_same_scene(seed):
    scene = StreetScene(seed)
    large = scene.render(3.0, height=480, width=960).labels
    small = scene.render(3.0, height=240, width=480).labels
    assert (large[::2, ::2] == small).mean() > 0.97


def test_the_camera_moves_smoothly():
    scene = StreetScene(2)
    now, next_frame, later = (
        scene.render(t, height=120, width=160) for t in (5.0, 5.0 + 1 / 25, 8.0)
    )
    assert (now.labels == next_frame.labels).mean() > 0.9
    assert not np.array_equal(now.image, next_frame.image)
    assert (now.labels != later.labels).mean() > 0.05


def test_speed_zero_leaves_buildings_where_they_are():
    scene = StreetScene(4, speed_mps=0.0)
    start, end = (scene.render(t, height=120, width=160).labels for t in (0.0, 7.0))
    assert (start == end).mean() > 0.8


def test_high_resolution_shows_poles_too_thin_for_low_resolution():
    thin = 0
    for seed in (41, 43):
        labels = StreetScene(seed).render(3.0, height=512, width=1024).labels
        poles = np.pad((labels == POLE).astype(np.int8), ((0, 0), (1, 1)))
        starts, ends = (np.nonzero(np.diff(poles, axis=1) == step)[1] for step in (1, -1))
        thin += int(np.count_nonzero(ends - starts <= 3))
    assert thin > 50


def test_picture_and_labels_show_the_same_outlines():
    frame = StreetScene(12).render(3.0, height=240, width=320)
    edges = np.zeros_like(frame.labels, bool)
    edges[:, 1:] = frame.labels[:, 1:] != frame.labels[:, :-1]
    steps = np.abs(np.diff(frame.image.astype(int).sum(axis=2), axis=1, prepend=0))
    assert np.median(steps[edges]) > 3 * np.median(steps[~edges])


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (15, 64, r"height must be 16\.\.16384 pixels, got 15; render"),
        (64, 0, r"width must be 16\.\.16384 pixels, got 0; render"),
        (64, 16385, r"width must be 16\.\.16384 pixels, got 16385; render"),
    ],
    ids=["low", "empty", "wide"],
)
def test_impossible_sizes_are_refused(height, width, message):
    with pytest.raises(ValueError, match=message):
        StreetScene(0).render(0.0, height=height, width=width)


@pytest.mark.parametrize("time_s", [float("nan"), float("inf")])
def test_impossible_times_are_refused(time_s):
    with pytest.raises(ValueError, match="time_s must be a finite number of seconds"):
        StreetScene(0).render(time_s, height=64, width=64)
