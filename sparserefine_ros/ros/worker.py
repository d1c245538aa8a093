# SPDX-License-Identifier: Apache-2.0
"""A worker thread with one-slot mailboxes: the newest frame wins, and the cameras take turns.

Frames of several cameras that wait at the same time, or nearly so, may be processed together.

Every frame is accounted for: at every instant, for each mailbox,
`received == processed + dropped + rejected + in_flight`.
"""

from __future__ import annotations

import collections
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from sparserefine_ros.errors import ImageError, ModelOutputError
from sparserefine_ros.ros.rhythm import Rhythm

T = TypeVar("T")

# Ends the processing of one item. Returns None when it was processed, or the reason why it counts
# as dropped. What it raises rejects the item: ImageError under its `reason`, ModelOutputError under
# "model_output", anything else under "internal".
Finish = Callable[[], str | None]

NEWER_FRAME: Final = "newer_frame"
STOPPED: Final = "stopped"
MODEL_OUTPUT: Final = "model_output"
INTERNAL: Final = "internal"


@dataclass(frozen=True)
class FrameCounts:
    """What became of the frames offered so far.

    Attributes:
        received: frames offered.
        processed: frames whose processing ended well.
        in_flight: frames waiting or being processed, 0 .. 2 for each camera.
        dropped: frames given up without a fault of theirs, by reason.
        rejected: frames that could not be processed, by reason.
        last_rejection: text of the latest rejection; empty when there was none.
        last_rejection_s: when it was, on `time.monotonic`.
    """

    received: int = 0
    processed: int = 0
    in_flight: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    last_rejection: str = ""
    last_rejection_s: float = 0.0

    @property
    def dropped_total(self) -> int:
        """Dropped frames over all reasons."""
        return sum(self.dropped.values())

    @property
    def rejected_total(self) -> int:
        """Rejected frames over all reasons."""
        return sum(self.rejected.values())

    @classmethod
    def total(cls, parts: Iterable[FrameCounts]) -> FrameCounts:
        """The sum over several cameras, with the latest rejection of them all."""
        parts = list(parts)
        latest = max(parts, key=lambda part: part.last_rejection_s, default=cls())
        dropped: collections.Counter[str] = collections.Counter()
        rejected: collections.Counter[str] = collections.Counter()
        for part in parts:
            dropped.update(part.dropped)
            rejected.update(part.rejected)
        return cls(
            received=sum(part.received for part in parts),
            processed=sum(part.processed for part in parts),
            in_flight=sum(part.in_flight for part in parts),
            dropped=MappingProxyType(dict(dropped)),
            rejected=MappingProxyType(dict(rejected)),
            last_rejection=latest.last_rejection,
            last_rejection_s=latest.last_rejection_s,
        )


class _Mailbox(Generic[T]):
    """Slot and books of one camera; guarded by the worker's lock."""

    def __init__(self) -> None:
        self.slot: list[T] = []
        self.rhythm = Rhythm()
        self.turn = 0
        self.busy = 0
        self.began_s = 0.0
        self.received = 0
        self.processed = 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self.rejected: collections.Counter[str] = collections.Counter()
        self.last_rejection = ""
        self.last_rejection_s = 0.0

    def drop_waiting(self, reason: str) -> None:
        if self.slot:
            self.slot.clear()
            self.dropped[reason] += 1

    def counts(self) -> FrameCounts:
        return FrameCounts(
            received=self.received,
            processed=self.processed,
            in_flight=len(self.slot) + self.busy,
            dropped=MappingProxyType(dict(self.dropped)),
            rejected=MappingProxyType(dict(self.rejected)),
            last_rejection=self.last_rejection,
            last_rejection_s=self.last_rejection_s,
        )


class LatestWorker(Generic[T]):
    """Processes the newest item of each mailbox in one thread; counts survive stop and start.

    Of the mailboxes with an item, the one served longest ago is next, so that under overload each
    is served equally often whatever its rate.

    Args:
        process: begins the work on items of different mailboxes, in the worker thread, and returns
            for each of them, in order, what ends it. What it raises rejects them all, as a `Finish`
            does one; the thread goes on.
        on_rejected: called in the worker thread with item, reason and error.
    """

    def __init__(
        self,
        process: Callable[[Sequence[T]], Sequence[Finish]],
        *,
        on_rejected: Callable[[T, str, Exception], None],
    ) -> None:
        self._process = process
        self._on_rejected = on_rejected
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._running = False
        self._mailboxes: dict[Hashable, _Mailbox[T]] = {}
        self._turns = 0
        self._together = 1

    def start(self, *, together: int = 1) -> None:
        """Start the thread; a started worker stays as it is.

        Args:
            together: items that are processed together, at most.
        """
        with self._changed:
            if self._running:
                return
            if self._thread is not None:
                raise RuntimeError("expected a worker that has stopped, its last item is in work")
            self._running, self._together = True, together
            # A daemon, so that a model that never returns cannot keep the process alive.
            self._thread = threading.Thread(target=self._run, name="latest_frame", daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Drop the waiting items, let the running one finish, and join the thread.

        Args:
            timeout_s: how long to wait for the running item; None for as long as it takes.

        Returns:
            whether it has finished; until then call this again, or leave the thread to its fate.
        """
        with self._changed:
            thread = self._thread
            self._running = False
            for mailbox in self._mailboxes.values():
                mailbox.drop_waiting(STOPPED)
                mailbox.rhythm.forget()
            self._changed.notify_all()
        if thread is not None:
            thread.join(timeout_s)
            if thread.is_alive():
                return False
        with self._changed:
            self._thread = None
        return True

    def offer(self, item: T, mailbox: Hashable = "") -> None:
        """Hand over an item without blocking; it replaces the one that waits in its mailbox."""
        with self._changed:
            box = self._mailboxes.setdefault(mailbox, _Mailbox())
            box.received += 1
            if not self._running:
                box.dropped[STOPPED] += 1
                return
            box.drop_waiting(NEWER_FRAME)
            box.slot.append(item)
            box.rhythm.arrived(time.monotonic())
            self._changed.notify_all()

    def counts(self, mailbox: Hashable = None) -> FrameCounts:
        """Consistent snapshot of the counters of one mailbox, or of all together."""
        with self._changed:
            if mailbox is None:
                return FrameCounts.total([box.counts() for box in self._mailboxes.values()])
            box = self._mailboxes.get(mailbox)
            return FrameCounts() if box is None else box.counts()

    def busy_s(self, mailbox: Hashable) -> float:
        """How long the item in work has been in work; 0 without one."""
        with self._changed:
            box = self._mailboxes.get(mailbox)
            return time.monotonic() - box.began_s if box is not None and box.busy else 0.0

    def waiting(self, within_s: float) -> int:
        """Items that wait for one of another mailbox and are not soon replaced.

        Args:
            within_s: an item does not count whose mailbox expects a newer one within so long.
        """
        with self._changed:
            now_s = time.monotonic()
            idle = (box for box in self._mailboxes.values() if box.slot and not box.busy)
            return sum(box.rhythm.due_s(now_s) > within_s for box in idle)

    def _run(self) -> None:
        while True:
            with self._changed:
                boxes = self._await_turn()
                if not boxes:
                    return
                items = [box.slot.pop() for box in boxes]
                for box in boxes:
                    box.busy = 1
                    box.began_s = time.monotonic()
                    self._turns += 1
                    box.turn = self._turns
            self._handle(items, boxes)
            del items  # frames are large: do not hold them while waiting for the next

    def _await_turn(self) -> list[_Mailbox[T]]:
        """The mailboxes to serve next; none when the worker was stopped."""
        # Set by the first wait: woken late, one could wait for the next frame again and again.
        limit_s = math.inf
        while self._running:
            waiting = [box for box in self._mailboxes.values() if box.slot]
            if not waiting:
                limit_s = math.inf
                self._changed.wait()
                continue
            waiting.sort(key=lambda each: each.turn)
            now_s = time.monotonic()
            patience_s = min(self._patience_s(waiting, now_s), limit_s - now_s)
            if patience_s <= 0.0:
                return waiting[: self._together]
            limit_s = min(limit_s, now_s + patience_s)
            self._changed.wait(patience_s)
        return []

    def _patience_s(self, waiting: Sequence[_Mailbox[T]], now_s: float) -> float:
        """How long to wait for a newer frame, or for more of them; 0: not at all."""
        patience_s = waiting[0].rhythm.patience_s(now_s)
        if len(waiting) < self._together:
            others = (box for box in self._mailboxes.values() if not box.slot)
            patience_s = max([patience_s, *(box.rhythm.company_s(now_s) for box in others)])
        return patience_s

    def _handle(self, items: Sequence[T], boxes: Sequence[_Mailbox[T]]) -> None:
        start_s = time.monotonic()
        try:
            finishes = self._process(items)
        except Exception as err:
            for item, box in zip(items, boxes, strict=True):
                self._reject(item, box, err)
            return
        for item, box, finish in zip(items, boxes, finishes, strict=True):
            try:
                dropped = finish()
            except Exception as err:
                self._reject(item, box, err)
                continue
            with self._changed:
                box.busy = 0
                box.rhythm.processed(time.monotonic() - start_s)
                if dropped is None:
                    box.processed += 1
                else:
                    box.dropped[dropped] += 1

    def _reject(self, item: T, box: _Mailbox[T], error: Exception) -> None:
        reason = _reason(error)
        with self._changed:
            box.busy = 0
            box.rejected[reason] += 1
            box.last_rejection = f"{reason}: {error}"
            box.last_rejection_s = time.monotonic()
        try:
            self._on_rejected(item, reason, error)
        except Exception:
            logging.getLogger(__name__).exception("reporting a rejected frame failed")
        # An error that was kept for later is held by the variables of the very calls that its
        # traceback holds, with the picture and the model: a circle that may last for long.
        error.__traceback__ = None


def _reason(error: Exception) -> str:
    """Under which a rejection is counted."""
    if isinstance(error, ImageError):
        return error.reason
    return MODEL_OUTPUT if isinstance(error, ModelOutputError) else INTERNAL
