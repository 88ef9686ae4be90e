"""PostgreSQL stopped in the middle, and away for minutes."""

from __future__ import annotations

import random
import time
from typing import Any

from tests.faults.house import House, until
from tests.faults.outcome import claimed_after, drained, percentile
from tests.faults.pictures import portrait
from tests.fixtures.databases import PostgresServer

READY = "/readyz"
JOBS = "/v1/jobs?limit=1"


def postgres_stop(house: House, server: PostgresServer, n: int, seed: int) -> dict[str, Any]:
    """Stopped as in a crash, and started again, `n` times while jobs go through."""
    chance = random.Random(seed)
    prefix, keys, lags = f"pg-{int(time.time())}", [], []
    for number in range(n):
        fresh = house.put_some(f"{prefix}/{number:03}", 4, first=number * 10)
        keys += fresh
        time.sleep(0.05 + 0.4 * chance.random())
        server.stop("immediate")
        time.sleep(0.3 * chance.random())
        server.start()
        house.db.dispose()
        at = time.time()
        tally = drained(house, fresh, 90)
        lags += [seconds for history in tally.history.values() if (seconds := claimed_after(history, at)) is not None]
    tally = drained(house, keys, 60)
    most = percentile(lags, 1)
    passed = not tally.lost and not tally.duplicates and tally.statuses == {"done": len(keys)} and (most or 0) <= 30
    return {
        **tally.figures(), "n": n, "recovery_p95_s": percentile(lags, 0.95), "recovery_max_s": most,
        "reruns": tally.reruns, "passed": passed,
    }  # fmt: skip


def postgres_down(house: House, server: PostgresServer, n: int, seed: int) -> dict[str, Any]:
    """Away for `n` seconds: the API says 503, nothing is lost, and 30 s after its return all goes on."""
    prefix = f"pgdown-{int(time.time())}"
    keys = [f"{prefix}/{number}.jpg" for number in range(8)]
    for number, key in enumerate(keys[:4]):
        house.put(key, portrait(number + seed))
    server.stop("immediate")
    gone, codes = time.time(), []
    for number, key in enumerate(keys[4:]):
        house.put(key, portrait(100 + number + seed))
    while time.time() - gone < n:
        codes += [house.web(JOBS), house.web(READY)]
        time.sleep(min(5.0, n / 10))
    server.start()
    house.db.dispose()
    at = time.time()
    until(lambda: house.web(JOBS) == 200, "the API's return", 60)
    back = round(time.time() - at, 2)
    tally = drained(house, keys, 120)
    lags = [seconds for history in tally.history.values() if (seconds := claimed_after(history, at)) is not None]
    most = percentile(lags, 1)
    passed = not tally.lost and not tally.duplicates and set(codes) == {503} and tally.statuses == {"done": len(keys)}
    return {
        **tally.figures(), "n": n, "down_s": n, "api_codes": sorted(set(codes)), "api_back_s": back, "recovery_max_s": most,
        "passed": passed and back <= 30 and (most or 0) <= 30,
    }  # fmt: skip
