# SPDX-License-Identifier: Apache-2.0
"""Which frames are worth waiting for, in times that are told, not measured."""

from __future__ import annotations

import math

import pytest

from sparserefine_ros.ros.rhythm import Rhythm


def rhythm(period_s: float, processing_s: float) -> Rhythm:
    """A camera whose last frame came at 10.0."""
    made = Rhythm()
    made.arrived(10.0 - period_s)
    made.arrived(10.0)
    made.processed(processing_s)
    return made


@pytest.mark.parametrize(
    ("now_s", "patience_s"),
    [
        (10.001, 0.0),  # fresh: the next one is far off
        (10.008, 0.0),
        (10.009, 0.0405),
        (10.020, 0.0295),  # missing from 10.0495 on
        (10.033, 0.0165),
        (10.050, 0.0),  # it should have come
        (11.0, 0.0),
    ],
)
def test_a_slow_node_waits_for_what_is_due_soon(now_s: float, patience_s: float) -> None:
    assert rhythm(0.033, 0.3).patience_s(now_s) == pytest.approx(patience_s, abs=1e-4)


def test_a_fast_node_waits_for_no_longer_than_a_share_of_its_work() -> None:
    assert rhythm(0.033, 0.02).patience_s(10.020) == 0.0
    assert rhythm(0.033, 0.02).patience_s(10.029) == pytest.approx(0.009)
    assert rhythm(0.033, 0.02).patience_s(10.037) == pytest.approx(0.001)


def test_a_fresh_frame_is_taken_even_when_the_next_one_is_due_soon() -> None:
    assert rhythm(0.01, 0.3).patience_s(10.001) == 0.0
    assert rhythm(0.01, 0.3).patience_s(10.006) == pytest.approx(0.009)


def test_a_slow_camera_is_not_waited_for() -> None:
    assert rhythm(0.5, 0.3).patience_s(10.3) == 0.0
    assert rhythm(0.5, 0.3).patience_s(10.51) == pytest.approx(0.02)  # no longer than it is worth
    assert rhythm(0.5, 0.3).patience_s(10.54) == 0.0


def test_uneven_arrivals_have_a_rhythm_all_the_same() -> None:
    made = Rhythm()
    made.processed(0.3)
    for now_s in (9.834, 9.867, 9.905, 9.933, 9.975, 10.0):
        made.arrived(now_s)
    assert made.due_s(10.0) == pytest.approx(0.033)
    for now_s in (10.1, 10.2, 10.3):  # a new pace is believed after three frames
        made.arrived(now_s)
    assert made.due_s(10.3) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("now_s", "company_s"),
    [
        (10.022, 0.0),  # due in 11 ms
        (10.024, 0.019),
        (10.033, 0.010),
        (10.042, 0.001),
        (10.044, 0.0),  # it should have come
    ],
)
def test_company_is_worth_a_few_milliseconds(now_s: float, company_s: float) -> None:
    assert rhythm(0.033, 0.3).company_s(now_s) == pytest.approx(company_s, abs=1e-4)


def test_company_is_worth_no_more_than_a_share_of_the_work() -> None:
    assert rhythm(0.033, 0.02).company_s(10.027) == 0.0
    assert rhythm(0.033, 0.02).company_s(10.030) == pytest.approx(0.008)


def test_without_two_arrivals_there_is_no_rhythm() -> None:
    single = Rhythm()
    assert single.patience_s(10.0) == 0.0
    single.arrived(10.0)
    single.processed(1.0)
    assert single.patience_s(10.01) == 0.0
    known = rhythm(0.033, 0.3)
    known.forget()
    known.arrived(10.0)
    assert known.patience_s(10.03) == 0.0
    assert known.company_s(10.03) == single.company_s(10.03) == 0.0
    assert known.due_s(10.03) == single.due_s(10.03) == math.inf


def test_when_the_next_frame_is_due() -> None:
    assert rhythm(0.033, 0.3).due_s(10.023) == pytest.approx(0.010)
    assert rhythm(0.033, 0.3).due_s(10.043) == pytest.approx(-0.010)
