# SPDX-License-Identifier: Apache-2.0
"""Frames lost on the way to the node, from gaps in the publishers' sequence numbers.

The middleware's own event (message lost) stays silent when a frame is replaced in a full queue or
when a best-effort frame is too large for the shared-memory segment; the numbers tell both.
"""

from __future__ import annotations


class LossCounter:
    """Counts gaps; one instance serves the node for its whole life. Used by one thread."""

    def __init__(self) -> None:
        self._last: dict[bytes, int] = {}
        self._lost: int | None = None

    @property
    def lost(self) -> int | None:
        """Frames lost so far; None while the middleware has not told numbers and publishers."""
        return self._lost

    def start(self) -> None:
        """Begin a new subscription: what was published without one is no loss."""
        self._last.clear()

    def note(self, publisher: bytes, sequence: int | None) -> None:
        """Take note of a received frame.

        Args:
            publisher: identity of the publisher; numbers are per publisher. Empty where it is not
                told, as by rclpy before 9: then a new publisher would look like a loss.
            sequence: its publication sequence number; None where the middleware has none.
        """
        if sequence is None or not publisher:
            return
        last = self._last.get(publisher, sequence - 1)
        self._lost = (self._lost or 0) + max(0, sequence - last - 1)
        self._last[publisher] = max(last, sequence)
