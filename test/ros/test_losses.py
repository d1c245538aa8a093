# SPDX-License-Identifier: Apache-2.0
"""Gaps in sequence numbers."""

from __future__ import annotations

from sparserefine_ros.ros.losses import LossCounter


def count(*frames: tuple[bytes, int | None]) -> int | None:
    losses = LossCounter()
    for publisher, sequence in frames:
        losses.note(publisher, sequence)
    return losses.lost


def test_without_numbers_nothing_is_known() -> None:
    assert count() is None
    assert count((b"a", None), (b"a", None)) is None


def test_gaps_are_counted_for_each_publisher() -> None:
    assert count((b"a", 7), (b"a", 8), (b"a", 9)) == 0
    assert count((b"a", 7), (b"b", 70), (b"a", 10), (b"b", 72)) == 3


def test_late_and_repeated_frames_are_no_loss() -> None:
    assert count((b"a", 5), (b"a", 4), (b"a", 5), (b"a", 6)) == 0


def test_a_new_subscription_forgets_the_numbers_but_not_the_losses() -> None:
    losses = LossCounter()
    losses.note(b"a", 1)
    losses.note(b"a", 3)
    losses.start()
    losses.note(b"a", 90)
    assert losses.lost == 1
    losses.note(b"a", 92)
    assert losses.lost == 2


def test_without_the_publishers_nothing_is_known() -> None:
    """A driver that starts again, or a second one, would look like a loss."""
    assert count((b"", 7), (b"", 108000), (b"", 9)) is None
