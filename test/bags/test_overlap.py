# SPDX-License-Identifier: Apache-2.0
"""Reading ahead and working behind: order, limits, errors and early ends."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from sparserefine_ros.bags.overlap import Behind, read_ahead, side_by_side


def wait_until_steady(values: list[int]) -> int:
    """Length of a list once it has stopped growing."""
    length = -1
    while length != len(values):
        length = len(values)
        time.sleep(0.05)
    return length


def test_items_come_in_order_and_only_so_many_ahead() -> None:
    read: list[int] = []

    def source() -> Iterator[int]:
        for number in range(20):
            read.append(number)
            yield number

    items = read_ahead(source(), 3)
    assert next(items) == 0
    # One was taken, three wait, and one is held.
    assert wait_until_steady(read) == 5
    assert list(items) == list(range(1, 20))


def test_an_early_end_ends_the_thread() -> None:
    before = threading.active_count()
    items = read_ahead(itertools.count(), 2)
    assert [next(items), next(items)] == [0, 1]
    assert threading.active_count() == before + 1
    items.close()
    assert threading.active_count() == before


def test_an_error_comes_in_its_turn() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    items = read_ahead(source(), 5)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_side_by_side_keep_the_order(workers: int) -> None:
    busy, most, lock = [0] * workers, [0] * workers, threading.Lock()

    def worker(index: int, item: int) -> int:
        with lock:
            busy[index] += 1
            most[index] = max(most[index], busy[index])
        time.sleep(0.01 if item % 3 else 0.03)
        with lock:
            busy[index] -= 1
        return 2 * item

    before = threading.active_count()
    ways = [functools.partial(worker, index) for index in range(workers)]
    assert list(side_by_side(ways, range(30))) == [2 * item for item in range(30)]
    assert most == [1] * workers
    assert threading.active_count() == before


def test_workers_side_by_side_overlap() -> None:
    meeting = threading.Barrier(2, timeout=10.0)

    def worker(item: int) -> int:
        meeting.wait()  # nobody gets past it alone
        return item

    assert list(side_by_side([worker, worker], range(6))) == list(range(6))


def test_an_error_side_by_side_comes_in_its_turn_and_ends_the_rest() -> None:
    taken: list[int] = []

    def worker(item: int) -> int:
        if item == 4:
            raise ValueError("broken")
        return item

    def source() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = side_by_side([worker, worker], source())
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="broken"):
        next(results)
    assert len(taken) <= 10


def test_an_early_end_side_by_side_ends_the_threads() -> None:
    before = threading.active_count()
    results = side_by_side([abs, abs], itertools.count())
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before


def test_work_is_done_in_order_before_the_block_ends() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.001)
        done.append(item)

    with Behind(work, 2) as behind:
        for number in range(10):
            behind.add(number)
    assert done == list(range(10))


@pytest.mark.parametrize("count", [1, 50])
def test_an_error_of_the_work_is_raised_and_nobody_waits_for_ever(count: int) -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 0:
            raise ValueError("first")
        done.append(item)

    def hand_over() -> None:
        with Behind(work, 1) as behind:
            for number in range(count):
                behind.add(number)

    with pytest.raises(ValueError, match="first"):
        hand_over()
    assert done == []


def test_an_error_of_the_block_goes_first() -> None:
    def work(_: int) -> None:
        raise ValueError("work")

    def hand_over() -> None:
        with Behind(work, 5) as behind:
            behind.add(1)
            raise KeyError("block")

    with pytest.raises(KeyError, match="block"):
        hand_over()
