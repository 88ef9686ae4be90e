"""Killing: a whole worker and a child of its pool, at every point; and the orderly end that loses nothing at all."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

from tests.faults.house import House, Impatient, until
from tests.faults.outcome import claimed_after, drained, over, percentile
from tests.faults.pictures import portrait

EXTRACT = ("extract.claimed", "fetch", "fetched", "decode", "decoded", "detected", "extract.committed")
CLASSIFY = ("classify.claimed", "classified", "classify.committed")
RENDER = ("render.claimed", "rendered", "put", "put.done", "render.committed")
NAMELESS = ("commit", "committed", "deliver", "delivered")
"""Points that do not know whose job they are of."""
WORKER_POINTS = (*EXTRACT, *CLASSIFY, *RENDER, "accepted", *NAMELESS)
CHILD_POINTS = (*EXTRACT, *RENDER)
IN_FLIGHT = {"kill_worker": 8, "kill": 1}
"""Jobs at a time: one doomed job must not wait for the next one's kill."""


def worker_kill(house: House, n: int, seed: int) -> dict[str, Any]:
    """SIGKILL of a whole worker, with all its children, at each point."""
    kills, tally = _killing(house, n, seed, WORKER_POINTS, "kill_worker")
    limit = house.settings.lease_s + 5
    p95 = percentile([seconds for _, seconds in kills], 0.95)
    reruns = round(tally.reruns / max(1, n), 2)
    passed = not tally.lost and not tally.duplicates and p95 is not None and p95 <= limit and reruns <= 1.5
    passed = passed and tally.statuses == {"done": n} and len(kills) > n / 2
    return {
        **tally.figures(), "n": n, "kills": len(kills), "points": len(WORKER_POINTS),
        "lease_s": house.settings.lease_s, "recovery_p95_s": p95,
        "recovery_max_s": percentile([seconds for _, seconds in kills], 1), "reruns_per_kill": reruns, "passed": passed,
    }  # fmt: skip


def child_kill(house: House, n: int, seed: int) -> dict[str, Any]:
    """SIGKILL of a pool child at each point."""
    kills, tally = _killing(house, n, seed, CHILD_POINTS, "kill")
    p95, most = (percentile([seconds for _, seconds in kills], part) for part in (0.95, 1))
    passed = not tally.lost and not tally.duplicates and most is not None and p95 is not None and p95 <= 2 and tally.statuses == {"done": n}
    return {
        **tally.figures(), "n": n, "kills": len(kills), "recovery_p95_s": p95, "recovery_max_s": most,
        "reruns_per_kill": round(tally.reruns / max(1, n), 2), "passed": passed,
    }  # fmt: skip


def _killing(house: House, n: int, seed: int, points: tuple[str, ...], action: str) -> tuple[list[tuple[str, float]], Any]:
    """One upload for each kill, several in flight; each kill is meant for its upload where the point knows it."""
    chance = random.Random(seed)
    turns = [points[number % len(points)] for number in range(n)]
    chance.shuffle(turns)
    orders: dict[str, tuple[str, str]] = {}
    left: set[str] = set()
    began = time.time()
    for number, point in enumerate(turns):
        key = f"{action}-{int(began)}/{number:05}.jpg"
        orders[house.order(point, action, "" if point in NAMELESS else key)] = (point, key)
        house.put(key, portrait(number))
        left.add(key)
        until(lambda: len(_left(house, left)) < IN_FLIGHT[action], "room for more", 120)
    keys = {key for _, key in orders.values()}
    named = {order: key for order, (point, key) in orders.items() if point not in NAMELESS}
    until(lambda: all(house.taken(order) or house.done(key) for order, key in named.items()), "all kills", 120)
    try:
        until(lambda: all(house.taken(order) for order in orders), "the kills that any process may have", 30)
    except Impatient:
        house.forget_orders()
    tally = drained(house, keys, 120)
    kills = []
    for order, (point, key) in orders.items():
        taken = house.taken(order)
        if taken is None or key not in tally.jobs:
            continue
        job = _struck(tally, key) if point not in NAMELESS else _held_by(house, tally, int(taken["pid"]), float(taken["at"]))
        if job is not None and (seconds := claimed_after(tally.history[job], float(taken["at"]))) is not None:
            kills.append((point, seconds))
    return kills, tally


def _left(house: House, keys: set[str]) -> set[str]:
    """The set, without those that are over."""
    keys.difference_update(over(house.db, keys))
    return keys


def _struck(tally: Any, key: str) -> str:
    return str(tally.jobs[key].id)


def _held_by(house: House, tally: Any, pid: int, at: float) -> str | None:
    """The job that a process had claimed when it was killed; None: it had none."""
    last: tuple[float, str] | None = None
    for job_id, history in tally.history.items():
        before = [row for row in history if row.at <= at]
        if before and before[-1].what == "claimed" and before[-1].worker == house.worker(pid):
            last = max(last or (0.0, ""), (before[-1].at, job_id))
    return None if last is None else last[1]


def drain(house: House, n: int, seed: int) -> dict[str, Any]:
    """SIGTERM to a worker with a job in its hands: it finishes it, ends with 0, and nothing is done twice."""
    chance = random.Random(seed)
    stages = ["extract", "classify", "render"]
    seconds, statuses, keys = [], [], set()
    began = time.time()
    for number in range(n):
        stage = stages[number % 3]
        key = f"drain-{int(began)}/{number:05}.jpg"
        keys.add(key)
        order = house.order(f"{stage}.claimed", "sleep", key, amount=0.2 + 0.4 * chance.random())
        house.put(key, portrait(number))
        until(lambda order=order: house.taken(order), "the claim", 60)  # type: ignore[misc]
        keeper, at = house.keepers[stage], time.time()
        before = len(keeper.ended)
        house.kill(stage, signal.SIGTERM)
        until(lambda keeper=keeper, before=before: len(keeper.ended) > before, "the end of the worker", 60)  # type: ignore[misc]
        seconds.append(keeper.ended[before].at - at)
        statuses.append(keeper.ended[before].status)
    tally = drained(house, keys, 60)
    bad = sum(status != 0 for status in statuses)
    passed = not tally.lost and not tally.duplicates and not bad and max(seconds) <= 30 and tally.reruns == 0
    return {
        **tally.figures(), "n": n, "exits_not_0": bad, "seconds_p95": percentile(seconds, 0.95),
        "seconds_max": percentile(seconds, 1), "reruns": tally.reruns, "passed": passed,
    }  # fmt: skip
