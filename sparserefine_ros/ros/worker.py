# SPDX-License-Identifier: Apache-2.0
"""One-slot mailbox with a worker thread: the newest frame wins, and every frame is accounted for.

At every instant `received == processed + dropped + rejected + in_flight`.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from sparserefine_ros.errors import ImageError, ModelOutputError

T = TypeVar("T")

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
        in_flight: frames waiting or being processed, 0 .. 2.
        dropped: frames given up without a fault of theirs, by reason.
        rejected: frames that could not be processed, by reason.
        last_rejection: text of the latest rejection; empty when there was none.
    """

    received: int = 0
    processed: int = 0
    in_flight: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    last_rejection: str = ""

    @property
    def dropped_total(self) -> int:
        """Dropped frames over all reasons."""
        return sum(self.dropped.values())

    @property
    def rejected_total(self) -> int:
        """Rejected frames over all reasons."""
        return sum(self.rejected.values())


class LatestWorker(Generic[T]):
    """Processes the newest offered item in a thread of its own; counts survive stop and start.

    Args:
        process: handles one item in the worker thread. Returns None when the item was processed,
            or the reason under which it counts as dropped. What it raises rejects the item:
            ImageError under its `reason`, ModelOutputError under "model_output", anything else
            under "internal"; the thread goes on.
        on_rejected: called in the worker thread with the reason and the error.
    """

    def __init__(
        self,
        process: Callable[[T], str | None],
        *,
        on_rejected: Callable[[str, Exception], None],
    ) -> None:
        self._process = process
        self._on_rejected = on_rejected
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._running = False
        self._slot: list[T] = []
        self._busy = 0
        self._received = 0
        self._processed = 0
        self._dropped: collections.Counter[str] = collections.Counter()
        self._rejected: collections.Counter[str] = collections.Counter()
        self._last_rejection = ""

    def start(self) -> None:
        """Start the thread; a started worker stays as it is."""
        with self._changed:
            if self._running:
                return
            self._running = True
            # A daemon, so that a model that never returns cannot keep the process alive.
            self._thread = threading.Thread(target=self._run, name="latest_frame", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Drop the waiting item, let the running one finish, and join the thread."""
        with self._changed:
            thread, self._thread = self._thread, None
            self._running = False
            self._drop_waiting(STOPPED)
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def offer(self, item: T) -> None:
        """Hand over an item without blocking; it replaces the one that waits."""
        with self._changed:
            self._received += 1
            if not self._running:
                self._dropped[STOPPED] += 1
                return
            self._drop_waiting(NEWER_FRAME)
            self._slot.append(item)
            self._changed.notify_all()

    def counts(self) -> FrameCounts:
        """Consistent snapshot of the counters."""
        with self._changed:
            return FrameCounts(
                received=self._received,
                processed=self._processed,
                in_flight=len(self._slot) + self._busy,
                dropped=MappingProxyType(dict(self._dropped)),
                rejected=MappingProxyType(dict(self._rejected)),
                last_rejection=self._last_rejection,
            )

    def _drop_waiting(self, reason: str) -> None:
        if self._slot:
            self._slot.clear()
            self._dropped[reason] += 1

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._slot or not self._running)
                if not self._slot:
                    return
                item = self._slot.pop()
                self._busy = 1
            self._handle(item)
            del item  # a frame is large: do not hold it while waiting for the next

    def _handle(self, item: T) -> None:
        try:
            dropped = self._process(item)
        except ImageError as err:
            self._reject(err.reason, err)
        except ModelOutputError as err:
            self._reject(MODEL_OUTPUT, err)
        except Exception as err:
            self._reject(INTERNAL, err)
        else:
            with self._changed:
                self._busy = 0
                if dropped is None:
                    self._processed += 1
                else:
                    self._dropped[dropped] += 1

    def _reject(self, reason: str, error: Exception) -> None:
        with self._changed:
            self._busy = 0
            self._rejected[reason] += 1
            self._last_rejection = f"{reason}: {error}"
        try:
            self._on_rejected(reason, error)
        except Exception:
            logging.getLogger(__name__).exception("reporting a rejected frame failed")
