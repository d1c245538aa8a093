# SPDX-License-Identifier: Apache-2.0
"""Reading ahead, working side by side and behind: threads that share the work on a bag."""

from __future__ import annotations

import collections
import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Generic, TypeVar

from typing_extensions import Self

T = TypeVar("T")
R = TypeVar("R")

_END: Final = object()
_POLL_S: Final = 0.1


def read_ahead(source: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Iterate in a thread of its own, at most `depth` items ahead; close it to end the thread.

    What `source` raises is raised here in its turn.
    """
    items: queue.Queue[object] = queue.Queue(depth)
    failed: list[BaseException] = []
    ended = threading.Event()

    def put(item: object) -> None:
        done = False
        while not done and not ended.is_set():
            with contextlib.suppress(queue.Full):
                items.put(item, timeout=_POLL_S)
                done = True

    def read() -> None:
        try:
            for item in source:
                put(item)
                if ended.is_set():
                    break
        except BaseException as err:
            failed.append(err)
        put(_END)

    thread = threading.Thread(target=read, name="read_ahead", daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not _END:
            yield item  # type: ignore[misc]
    finally:
        ended.set()
        thread.join()
    if failed:
        raise failed[0]


def side_by_side(
    workers: Sequence[Callable[[T], R]], items: Iterable[T]
) -> Generator[R, None, None]:
    """Results in the order of the items, each from the worker that is free first.

    Args:
        workers: each works on one item at a time, in a thread; a single one in the caller's.
        items: taken two for each worker ahead.
    """
    if len(workers) == 1:
        yield from map(workers[0], items)
        return
    free: queue.SimpleQueue[Callable[[T], R]] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)

    def work(item: T) -> R:
        worker = free.get()
        try:
            return worker(item)
        finally:
            free.put(worker)

    pending: collections.deque[Future[R]] = collections.deque()
    pool = ThreadPoolExecutor(len(workers), "side_by_side")
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2 * len(workers):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Behind(Generic[T]):
    """Hands items to a thread that works on them in order; a context manager.

    Args:
        work: done with each item.
        depth: items that may wait; `add` blocks beyond.
    """

    def __init__(self, work: Callable[[T], None], depth: int) -> None:
        self._work = work
        self._items: queue.Queue[object] = queue.Queue(depth)
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="behind", daemon=True)
        self._thread.start()

    def add(self, item: T) -> None:
        """Hand over an item; raises what the work on an earlier one raised."""
        self._items.put(item)
        if self._failed:
            raise self._failed[0]

    def _run(self) -> None:
        while (item := self._items.get()) is not _END:
            if self._failed:
                continue  # so that nobody waits for room
            try:
                self._work(item)  # type: ignore[arg-type]
            except BaseException as err:
                self._failed.append(err)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._items.put(_END)
        self._thread.join()
        if self._failed and error is None:
            raise self._failed[0]
