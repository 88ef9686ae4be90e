"""The pictures of pages: drawn by two at a time, kept up to a number of bytes, and nobody waits for ever."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest

from webhooks import pictures
from webhooks.pictures import _Shelf
from webhooks.problems import Problem


def test_whoever_waits_too_long_for_others_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PATIENCE_S", 0.05)
    shelf, begun, over = _Shelf(1000), Barrier(3), Event()

    def hangs() -> bytes:
        begun.wait(10)
        over.wait(10)
        return b"late"

    with ThreadPoolExecutor(2) as pool:
        hanging = [pool.submit(shelf.get, (str(number),), hangs) for number in range(2)]
        begun.wait(10)
        with pytest.raises(Problem) as caught:
            shelf.get(("third",), lambda: b"never")
        over.set()
        assert [one.result() for one in hanging] == [b"late", b"late"]
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "5"})
    assert shelf.get(("third",), lambda: b"now") == b"now"


def test_one_that_fails_makes_room() -> None:
    shelf = _Shelf(1000)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            shelf.get(("a",), lambda: bytes(1 // 0))
    assert shelf.get(("a",), lambda: b"a") == b"a"


def test_the_same_picture_made_twice_at_once_counts_once() -> None:
    shelf = _Shelf(1000)
    for name in "abc":
        together = Barrier(2)

        def make(together: Barrier = together) -> bytes:
            together.wait(10)
            return bytes(300)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _, name=name, make=make: shelf.get((name,), make), range(2)))

    for name in "abc":
        shelf.get((name,), lambda: pytest.fail("it was kept"))
