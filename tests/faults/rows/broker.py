"""The broker killed under disk load, emptied, and away for minutes: its messages are hints, and none of them is missed."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

from tests.faults.house import House
from tests.faults.outcome import claimed_after, drained, percentile
from tests.faults.pictures import portrait

AGAIN_S = 30.0


def broker_kill(house: House, n: int, seed: int) -> dict[str, Any]:
    """SIGKILL of the broker `n` times while jobs go through and the disk is written to; it comes back with what it kept."""
    chance = random.Random(seed)
    prefix, keys, lags = f"broker-{int(time.time())}", [], []
    with _disk_load(house.root / "load"):
        for number in range(n):
            fresh = house.put_some(f"{prefix}/{number:03}", 4, first=number * 10)
            keys += fresh
            time.sleep(0.05 + 0.4 * chance.random())  # somewhere on their way
            house.kill("valkey")
            at = time.time()
            house.await_broker()
            tally = drained(house, fresh, 60)
            lags += [seconds for history in tally.history.values() if (seconds := claimed_after(history, at)) is not None]
    tally = drained(house, keys, 60)
    return _figures(tally, n, lags)


def broker_flush(house: House, n: int, seed: int) -> dict[str, Any]:
    """FLUSHALL `n` times while jobs wait and run."""
    chance = random.Random(seed)
    prefix, keys, lags = f"flush-{int(time.time())}", [], []
    for number in range(n):
        fresh = house.put_some(f"{prefix}/{number:03}", 6, first=number * 10)
        keys += fresh
        time.sleep(0.05 + 0.4 * chance.random())
        with house.broker() as client:
            client.flushall()
        at = time.time()
        tally = drained(house, fresh, 60)
        lags += [seconds for history in tally.history.values() if (seconds := claimed_after(history, at)) is not None]
    return _figures(drained(house, keys, 30), n, lags)


def broker_down(house: House, n: int, seed: int) -> dict[str, Any]:
    """The broker is away for `n` seconds while uploads come in; counted from its return."""
    prefix = f"down-{int(time.time())}"
    keys = [f"{prefix}/{number:03}.jpg" for number in range(20)]
    for number, key in enumerate(keys[:10]):
        house.put(key, portrait(number + seed))
    house.stop("valkey")
    gone, codes = time.time(), []
    for number, key in enumerate(keys[10:]):
        house.put(key, portrait(100 + number + seed))
        codes.append(house.web("/v1/jobs?limit=1"))
        time.sleep(max(0.0, n / 10 - (time.time() - gone - number * n / 10)))
    house.start("valkey")
    house.await_broker()
    at = time.time()
    tally = drained(house, keys, 120)
    lags = [seconds for history in tally.history.values() if (seconds := claimed_after(history, at)) is not None]
    return {**_figures(tally, n, lags), "down_s": n, "api_codes": sorted(set(codes))}


def _figures(tally: Any, n: int, lags: list[float]) -> dict[str, Any]:
    p95, most = percentile(lags, 0.95), percentile(lags, 1)
    passed = not tally.lost and not tally.duplicates and set(tally.statuses) == {"done"} and (most is None or most <= AGAIN_S)
    return {**tally.figures(), "n": n, "recovery_p95_s": p95, "recovery_max_s": most, "reruns": tally.reruns, "passed": passed}


class _disk_load:
    """Writes and syncs 4 MB at a time beside the broker's own file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        block = os.urandom(1 << 22)
        while not self._over.is_set():
            with self._path.open("wb") as file:
                file.write(block)
                os.fsync(file.fileno())
