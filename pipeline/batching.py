"""Micro-batches across callers: many threads ask for a few items each, one thread runs them together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Call(Generic[T, R]):
    items: list[T]
    future: Future[list[R]] = field(default_factory=Future)


class Batcher(Generic[T, R]):
    """Collects what callers submit and runs it in batches on one thread of its own.

    A batch closes when it holds `max_items` items or when `max_wait_s` seconds have passed since its first item came. One
    call is never spread over two batches unless it alone is larger than `max_items`: then it runs by itself, in parts.

    Make it after a fork, never before: it owns a thread.

    Args:
        run: takes a list of 1 to `max_items` items and returns one result for each, in order. Called by one thread only.
        max_items: the largest batch.
        max_wait_s: how long the first item of a batch waits for company, in seconds; 0 takes only what is there already.
    """

    def __init__(self, run: Callable[[list[T]], list[R]], *, max_items: int, max_wait_s: float) -> None:
        if max_items < 1 or max_wait_s < 0:
            raise ValueError("max_items must be at least 1 and max_wait_s not negative")
        self._run = run
        self._max_items = max_items
        self._max_wait_s = max_wait_s
        self._calls: SimpleQueue[_Call[T, R] | None] = SimpleQueue()
        self._closing = Lock()
        self._closed = False
        self._thread = Thread(target=self._loop, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, items: Sequence[T]) -> Future[list[R]]:
        """Ask for `items` to be run; the future gives their results in order, or the error of the batch they were in.

        Raises RuntimeError after `close`.
        """
        call: _Call[T, R] = _Call(list(items))
        with self._closing:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            if call.items:
                self._calls.put(call)
        if not call.items:
            call.future.set_result([])
        return call.future

    def close(self) -> None:
        """Run what was submitted, then end the thread. Safe to call twice."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._calls.put(None)
        self._thread.join()

    def __enter__(self) -> Batcher[T, R]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _loop(self) -> None:
        held: _Call[T, R] | None = None
        while (first := held or self._calls.get()) is not None:
            batch, held = self._collect(first)
            self._answer([call for call in batch if call.future.set_running_or_notify_cancel()])

    def _collect(self, first: _Call[T, R]) -> tuple[list[_Call[T, R]], _Call[T, R] | None]:
        """The calls of one batch, and the call that did not fit any more and opens the next one."""
        batch, size = [first], len(first.items)
        until = time.monotonic() + self._max_wait_s
        while size < self._max_items:
            try:
                call = self._calls.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
            if call is None:
                self._calls.put(None)  # nothing can follow it: the loop meets it again when this batch is done
                break
            if size + len(call.items) > self._max_items:
                return batch, call
            batch.append(call)
            size += len(call.items)
        return batch, None

    def _answer(self, batch: list[_Call[T, R]]) -> None:
        items = [item for call in batch for item in call.items]
        results: list[R] = []
        try:
            for start in range(0, len(items), self._max_items):
                part = items[start : start + self._max_items]
                answers = self._run(part)
                if len(answers) != len(part):
                    raise RuntimeError(f"{len(part)} items were run and {len(answers)} results came back")
                results.extend(answers)
        except BaseException as error:  # whatever it was, a caller waits for it; the thread must live on
            for call in batch:
                call.future.set_exception(error)
            return
        start = 0
        for call in batch:
            call.future.set_result(results[start : start + len(call.items)])
            start += len(call.items)
