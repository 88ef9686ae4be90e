"""The batcher: batches form across callers, errors stay where they happened, nothing waits for ever."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pipeline.batching import Batcher

LONG = 30.0
"""Seconds; a wait that only a failing test reaches the end of."""


class Gate:
    """A `run` that doubles numbers, remembers its batches, and holds the first one until `go` is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Event()
        self.go = threading.Event()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.entered.set()
        assert self.go.wait(LONG)
        return [2 * item for item in items]


def test_callers_share_a_batch_and_each_gets_its_own_results_in_order() -> None:
    gate = Gate()
    with Batcher(gate, max_items=8, max_wait_s=0) as batcher:
        # Given a batch that is being run
        first = batcher.submit([1])
        assert gate.entered.wait(LONG)
        # When three callers ask meanwhile
        others = [batcher.submit(items) for items in ([2, 3], [4], [5, 6])]
        gate.go.set()
        # Then they are run together, and nobody gets another's answer
        assert first.result(LONG) == [2]
        assert [future.result(LONG) for future in others] == [[4, 6], [8], [10, 12]]
    assert gate.batches == [[1], [2, 3, 4, 5, 6]]


def test_a_batch_never_exceeds_its_limit_and_no_call_is_torn() -> None:
    gate = Gate()
    with Batcher(gate, max_items=4, max_wait_s=0) as batcher:
        batcher.submit([0])
        assert gate.entered.wait(LONG)
        futures = [batcher.submit(items) for items in ([1, 2, 3], [4, 5], [6, 7], [8])]
        gate.go.set()
        assert [future.result(LONG) for future in futures] == [[2, 4, 6], [8, 10], [12, 14], [16]]
    assert gate.batches == [[0], [1, 2, 3], [4, 5, 6, 7], [8]]


def test_a_call_larger_than_a_batch_is_run_in_parts() -> None:
    sizes: list[int] = []

    def run(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return items

    with Batcher(run, max_items=4, max_wait_s=0) as batcher:
        assert batcher.submit(range(10)).result(LONG) == list(range(10))
    assert sizes == [4, 4, 2]


def test_a_full_batch_does_not_wait_for_company() -> None:
    with Batcher(lambda items: items, max_items=2, max_wait_s=3600) as batcher:
        assert batcher.submit([1, 2]).result(LONG) == [1, 2]


def test_a_lonely_item_waits_no_longer_than_it_must() -> None:
    with Batcher(lambda items: items, max_items=100, max_wait_s=0.01) as batcher:
        assert batcher.submit([1]).result(LONG) == [1]


def test_an_error_reaches_the_callers_of_that_batch_only() -> None:
    gate = Gate()

    def run(items: list[int]) -> list[int]:
        doubled = gate(items)
        if 13 in items:
            raise ValueError("unlucky")
        return doubled

    with Batcher(run, max_items=2, max_wait_s=0) as batcher:
        before = batcher.submit([1])
        assert gate.entered.wait(LONG)
        unlucky, beside = batcher.submit([13]), batcher.submit([2])
        after = batcher.submit([3])
        gate.go.set()
        assert before.result(LONG) == [2]
        for future in (unlucky, beside):
            with pytest.raises(ValueError, match="unlucky"):
                future.result(LONG)
        assert after.result(LONG) == [6]


def test_too_few_results_are_an_error_and_not_a_shift() -> None:
    with Batcher(lambda items: items[1:], max_items=4, max_wait_s=0) as batcher:
        future = batcher.submit([1, 2])
        with pytest.raises(RuntimeError, match="2 items were run and 1"):
            future.result(LONG)


def test_a_cancelled_call_is_not_run() -> None:
    gate = Gate()
    with Batcher(gate, max_items=4, max_wait_s=0) as batcher:
        batcher.submit([1])
        assert gate.entered.wait(LONG)
        cancelled, kept = batcher.submit([2]), batcher.submit([3])
        assert cancelled.cancel()
        gate.go.set()
        assert kept.result(LONG) == [6]
    assert gate.batches == [[1], [3]]


def test_nothing_asked_is_answered_at_once() -> None:
    with Batcher(lambda items: items, max_items=4, max_wait_s=3600) as batcher:
        assert batcher.submit([]).result(0) == []


def test_closing_runs_what_was_submitted_and_takes_nothing_more() -> None:
    gate = Gate()
    batcher = Batcher(gate, max_items=1, max_wait_s=3600)
    futures = [batcher.submit([number]) for number in range(3)]
    gate.go.set()
    batcher.close()
    batcher.close()
    assert [future.result(0) for future in futures] == [[0], [2], [4]]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit([1])


def test_closing_ends_the_wait_for_company() -> None:
    batcher = Batcher(lambda items: items, max_items=100, max_wait_s=3600)
    future = batcher.submit([1])
    batcher.close()
    assert future.result(0) == [1]


def test_many_threads_at_once_all_get_their_own() -> None:
    largest = 0

    def run(items: list[int]) -> list[int]:
        nonlocal largest
        largest = max(largest, len(items))
        return [item * item for item in items]

    def ask(batcher: Batcher[int, int], start: int) -> bool:
        futures: list[tuple[list[int], Future[list[int]]]] = []
        for number in range(start, start + 200):
            items = list(range(number, number + number % 4))
            futures.append((items, batcher.submit(items)))
        return all(future.result(LONG) == [item * item for item in items] for items, future in futures)

    with Batcher(run, max_items=7, max_wait_s=0.001) as batcher, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda start: ask(batcher, start), range(0, 8000, 1000)))
    assert largest <= 7


@pytest.mark.parametrize(("items", "wait"), [(0, 1.0), (1, -1.0)])
def test_senseless_limits_are_refused(items: int, wait: float) -> None:
    with pytest.raises(ValueError, match="max_items"):
        Batcher(lambda items: items, max_items=items, max_wait_s=wait)
