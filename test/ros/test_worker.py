# SPDX-License-Identifier: Apache-2.0
"""The mailbox: newest item wins, nothing is lost from the books, no error ends the thread."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest
from ros.working import balanced, settle

from sparserefine_ros.errors import ImageError, ModelOutputError
from sparserefine_ros.ros.rhythm import Rhythm
from sparserefine_ros.ros.worker import Finish, FrameCounts, LatestWorker


@contextmanager
def running(
    process: Callable[[int], str | None],
    on_rejected: Callable[[int, str, Exception], None] = lambda item, reason, error: None,
) -> Iterator[LatestWorker[int]]:
    worker: LatestWorker[int] = LatestWorker(
        lambda items: [partial(process, item) for item in items], on_rejected=on_rejected
    )
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def test_the_newest_waiting_item_wins() -> None:
    begun, gate, seen = threading.Event(), threading.Event(), []

    def process(item: int) -> None:
        begun.set()
        gate.wait(10.0)
        seen.append(item)

    with running(process) as worker:
        worker.offer(0)
        assert begun.wait(10.0)
        for item in (1, 2, 3):
            worker.offer(item)
        counts = worker.counts()
        assert (counts.received, counts.in_flight, counts.dropped) == (4, 2, {"newer_frame": 2})
        gate.set()
        counts = settle(worker)
    assert seen == [0, 3]
    assert (counts.processed, counts.dropped_total) == (2, 2)
    assert balanced(counts)


def test_errors_reject_the_item_and_the_thread_goes_on() -> None:
    errors = [
        ImageError("too short", reason="data_size"),
        ModelOutputError("NaN"),
        RuntimeError("surprise"),
        MemoryError("large"),
    ]
    reported: list[tuple[int, str, Exception]] = []

    def process(item: int) -> None:
        if item < len(errors):
            raise errors[item]

    with running(process, lambda *report: reported.append(report)) as worker:
        for item in range(len(errors) + 1):
            worker.offer(item)
            counts = settle(worker)
    assert counts.rejected == {"data_size": 1, "model_output": 1, "internal": 2}
    assert counts.processed == 1
    assert counts.last_rejection == "internal: large"
    reasons = ["data_size", "model_output", "internal", "internal"]
    assert reported == list(zip(range(4), reasons, errors, strict=True))
    assert balanced(counts)


def test_a_failing_report_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    def process(item: int) -> None:
        if item == 0:
            raise ImageError("bad")

    def on_rejected(item: int, reason: str, error: Exception) -> None:
        raise OSError("log is full")

    with running(process, on_rejected) as worker:
        worker.offer(0)
        settle(worker)
        worker.offer(1)
        counts = settle(worker)
    assert (counts.processed, counts.rejected) == (1, {"image": 1})
    assert "log is full" in caplog.text


def test_a_returned_reason_counts_as_dropped() -> None:
    with running(lambda item: "unwatched" if item % 2 else None) as worker:
        for item in range(4):
            worker.offer(item)
            counts = settle(worker)
    assert (counts.processed, counts.dropped) == (2, {"unwatched": 2})


def test_stop_drops_the_waiting_item_and_finishes_the_running_one() -> None:
    begun, finished = threading.Event(), []

    def process(item: int) -> None:
        begun.set()
        time.sleep(0.05)
        finished.append(item)

    with running(process) as worker:
        worker.offer(0)
        assert begun.wait(10.0)
        worker.offer(1)
        worker.stop()
        assert finished == [0]
        worker.offer(2)
        counts = worker.counts()
        assert counts.dropped == {"stopped": 2}
        assert (counts.received, counts.processed, counts.in_flight) == (3, 1, 0)


def test_stop_joins_and_start_works_again() -> None:
    threads = threading.active_count()
    with running(lambda item: None) as worker:
        for _ in range(3):
            worker.start()
            worker.start()
            assert threading.active_count() == threads + 1
            worker.offer(0)
            settle(worker)
            worker.stop()
            worker.stop()
            assert threading.active_count() == threads
    assert worker.counts().processed == 3


def test_the_books_balance_at_every_instant() -> None:
    rng = random.Random(5)
    outcomes = [None, "unwatched", ImageError("x", reason="step"), ValueError("y")]

    def process(item: int) -> str | None:
        outcome = outcomes[item % len(outcomes)]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    unbalanced = []
    with running(process) as worker:
        done = threading.Event()

        def audit() -> None:
            while not done.is_set():
                counts = worker.counts()
                if not balanced(counts):
                    unbalanced.append(counts)

        auditor = threading.Thread(target=audit)
        auditor.start()
        for item in range(1500):
            worker.offer(item)
            if rng.random() < 0.2:
                time.sleep(1e-5)
            if item % 300 == 299:
                worker.stop()
                worker.start()
        counts = settle(worker)
        done.set()
        auditor.join()
    assert unbalanced == []
    assert counts.received == 1500
    assert balanced(counts)
    assert counts.processed > 0
    assert counts.dropped["newer_frame"] > 0
    assert counts.rejected["step"] > 0


def test_cameras_take_turns_whatever_their_rates() -> None:
    gate, begun, seen = threading.Semaphore(0), threading.Semaphore(0), []

    def process(item: str) -> None:
        begun.release()
        assert gate.acquire(timeout=10.0)
        seen.append(item)

    with running(process) as worker:
        for turn in range(30):
            for item in ("fast", "fast", "slow", "fast"):
                worker.offer(item, item)
            if turn:
                gate.release()
            assert begun.acquire(timeout=10.0)
        gate.release()
        while len(seen) < 30:
            gate.release()
            time.sleep(0.001)
        settle(worker)
        fast, slow = worker.counts("fast"), worker.counts("slow")
        total = worker.counts()
    assert seen[:30].count("fast") == seen[:30].count("slow") == 15
    assert all(before != after for before, after in itertools.pairwise(seen[:30]))
    assert (fast.received, slow.received, total.received) == (90, 30, 120)
    assert total.processed == fast.processed + slow.processed
    assert total.dropped == {"newer_frame": fast.dropped_total + slow.dropped_total}
    assert all(balanced(counts) for counts in (fast, slow, total))


def test_a_silent_camera_costs_the_others_nothing() -> None:
    with running(lambda item: None) as worker:
        worker.offer(0, "silent")
        settle(worker)
        for item in range(5):
            worker.offer(item, "lively")
            settle(worker)
    assert worker.counts("lively").processed == 5
    assert worker.counts("never seen") == FrameCounts()


def test_a_frame_due_in_a_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, done = threading.Event(), []

    def patience_s(rhythm: Rhythm, now_s: float) -> float:
        first = not asked.is_set()
        asked.set()
        return 30.0 if first else 0.0

    monkeypatch.setattr(Rhythm, "patience_s", patience_s)
    with running(done.append) as worker:
        worker.offer("old")
        assert asked.wait(10.0)
        worker.offer("new")
        counts = settle(worker)
    assert done == ["new"]
    assert counts.dropped == {"newer_frame": 1}


def test_totals_of_nothing() -> None:
    assert FrameCounts.total([]) == FrameCounts()


def test_who_waits_for_whom_and_how_long_that_takes() -> None:
    begun, gate = threading.Event(), threading.Event()

    def process(item: int) -> None:
        begun.set()
        gate.wait(10.0)

    with running(process) as worker:
        assert worker.waiting(0.0) == 0
        assert worker.busy_s("front") == 0.0
        worker.offer(0, "front")
        assert begun.wait(10.0)
        worker.offer(1, "front")  # waits for its own camera's frame
        assert worker.waiting(0.0) == 0
        worker.offer(2, "rear")
        assert worker.waiting(100.0) == 1  # who knows when the next one comes
        time.sleep(0.2)
        worker.offer(3, "rear")
        # The next one is due in 0.2 s, or a little more.
        assert worker.waiting(0.1) == 1
        assert worker.waiting(100.0) == 0
        assert worker.busy_s("front") >= 0.2
        assert worker.busy_s("rear") == 0.0
        gate.set()
        settle(worker)
        assert worker.waiting(0.0) == 0
        assert worker.busy_s("front") == 0.0


def test_waiting_for_newer_items_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Woken late each time, the worker would find the next item worth waiting for each time."""
    monkeypatch.setattr(Rhythm, "patience_s", lambda rhythm, now_s: 0.05)
    with running(lambda item: None) as worker:
        end_s = time.monotonic() + 1.0
        for item in itertools.count():
            worker.offer(item)
            time.sleep(0.005)
            if time.monotonic() > end_s:
                break
        counts = settle(worker)
    assert counts.processed >= 5
    assert balanced(counts)


def test_a_rejected_item_is_let_go() -> None:
    """Also where the error is kept by the call that it came from, for which it is kept in turn."""

    class Item:
        pass

    def fail(error: Exception) -> str | None:
        raise error

    def process(items: Sequence[Item]) -> list[Finish]:
        finishes: list[Finish] = []
        try:
            raise ImageError("too small", reason="size")
        except ImageError as err:
            finishes.append(partial(fail, err))
        return finishes

    worker: LatestWorker[Item] = LatestWorker(process, on_rejected=lambda *_: None)
    worker.start()
    item = Item()
    alive = weakref.ref(item)
    gc.disable()
    try:
        worker.offer(item)
        del item
        end_s = time.monotonic() + 10.0
        while worker.counts().rejected_total == 0 or alive() is not None:
            assert time.monotonic() < end_s, "the item is still there"
            time.sleep(0.01)
    finally:
        gc.enable()
        worker.stop()


def test_an_item_that_never_ends_can_be_left_behind() -> None:
    begun, gate = threading.Event(), threading.Event()

    def process(item: int) -> None:
        begun.set()
        gate.wait(10.0)

    with running(process) as worker:
        worker.offer(0)
        assert begun.wait(10.0)
        assert not worker.stop(0.05)
        with pytest.raises(RuntimeError, match="its last item is in work"):
            worker.start()
        gate.set()
        assert worker.stop()
        worker.start()
        worker.offer(1)
        assert settle(worker).processed == 2


def test_the_last_rejection_is_the_latest_of_all_cameras() -> None:
    def process(item: int) -> None:
        raise ImageError(f"item {item}", reason="size")

    with running(process) as worker:
        for item, camera in enumerate(("front", "rear", "front")):
            worker.offer(item, camera)
            settle(worker)
        assert worker.counts().last_rejection == "size: item 2"
        assert worker.counts("rear").last_rejection == "size: item 1"
