# SPDX-License-Identifier: Apache-2.0
"""Items of several cameras that are worked on together."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest
from ros.working import balanced, settle

from sparserefine_ros.errors import ImageError, ModelOutputError
from sparserefine_ros.ros.rhythm import Rhythm
from sparserefine_ros.ros.worker import Finish, LatestWorker


class Gathering:
    """A `process` that notes what came together, and holds the first batch up."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun, self.gate = threading.Event(), threading.Event()

    def __call__(self, items: Sequence[str]) -> list[Finish]:
        self.batches.append(list(items))
        self.begun.set()
        assert self.gate.wait(10.0)
        return [lambda: None for _ in items]


@contextmanager
def gathering(together: int) -> Iterator[tuple[Gathering, LatestWorker[str]]]:
    process = Gathering()
    worker = LatestWorker(process, on_rejected=lambda item, reason, error: None)
    worker.start(together=together)
    try:
        yield process, worker
    finally:
        process.gate.set()
        worker.stop()


@pytest.mark.parametrize(
    ("together", "expected"),
    [
        (1, [["a"], ["b"], ["c"], ["d"], ["a"]]),
        (2, [["a"], ["b", "c"], ["d", "a"]]),
        (3, [["a"], ["b", "c", "d"], ["a"]]),
        (9, [["a"], ["b", "c", "d", "a"]]),
    ],
)
def test_waiting_items_of_several_cameras_go_together(
    together: int, expected: list[list[str]]
) -> None:
    with gathering(together) as (process, worker):
        worker.offer("a", "a")
        assert process.begun.wait(10.0)
        for item in ("b", "c", "d", "a"):
            worker.offer(item, item)
        process.gate.set()
        counts = settle(worker)
    assert process.batches == expected
    assert (counts.processed, counts.dropped_total) == (5, 0)


def test_an_item_due_in_a_moment_joins_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def company_s(rhythm: Rhythm, now_s: float) -> float:
        asked.set()
        return 30.0

    with gathering(2) as (process, worker):
        process.gate.set()
        worker.offer("b", "b")
        settle(worker)
        monkeypatch.setattr(Rhythm, "company_s", company_s)
        worker.offer("a", "a")
        assert asked.wait(10.0)
        assert worker.counts("a").in_flight == 1
        worker.offer("b", "b")
        settle(worker)
    assert process.batches == [["b"], ["b", "a"]] or process.batches == [["b"], ["a", "b"]]


@pytest.mark.parametrize("fails", ["all", "one"])
def test_errors_in_a_batch(fails: str) -> None:
    begun, gate = threading.Event(), threading.Event()

    def process(items: Sequence[str]) -> list[Finish]:
        begun.set()
        assert gate.wait(10.0)
        if fails == "all" and len(items) > 1:
            raise ModelOutputError("NaN")
        return [partial(finish, item) for item in items]

    def finish(item: str) -> None:
        if item == "bad":
            raise ImageError("short", reason="data_size")

    rejected: list[tuple[str, str]] = []
    worker = LatestWorker(process, on_rejected=lambda item, why, _: rejected.append((item, why)))
    worker.start(together=3)
    worker.offer("first", "a")
    assert begun.wait(10.0)
    for item in ("good", "bad", "fine"):
        worker.offer(item, item)
    gate.set()
    counts = settle(worker)
    worker.stop()
    everybody = [(item, "model_output") for item in ("good", "bad", "fine")]
    assert rejected == (everybody if fails == "all" else [("bad", "data_size")])
    assert balanced(counts)
    assert counts.processed == (1 if fails == "all" else 3)
