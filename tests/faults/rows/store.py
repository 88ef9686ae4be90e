"""An object store that refuses, crawls, breaks off, hangs, forgets, and changes its mind."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from itertools import pairwise
from typing import Any

from tests.faults.house import House, Impatient, until
from tests.faults.outcome import drained, percentile
from tests.faults.pictures import portrait
from tests.faults.proxy import PASS, Spoil
from workers.scratch import PIXELS

TRANSIENT = {
    "5xx": Spoil("status", 503, 0.3),
    "crawl": Spoil("slow", 1000, 0.5, "GET /inbox/"),
    "reset": Spoil("reset", 600, 0.3),
    "cut": Spoil("cut", 600, 0.3),
    "slices": Spoil("slice", 100, 1.0),
    "latency": Spoil("latency", 0.2, 1.0),
}
"""What passes: every upload must come through."""
MOST_BLOCKED_S = 60.0


def store_transient(house: House, n: int, seed: int) -> dict[str, Any]:
    """Each kind of trouble that passes, with `n` uploads each."""
    kinds, lost, duplicates, blocked, uploads, broken = {}, 0, 0, 0.0, 0, 0
    for kind, spoil in TRANSIENT.items():
        prefix = f"store-{int(time.time())}-{kind}"
        keys = [f"{prefix}/{number:03}.jpg" for number in range(n)]
        house.s3.spoil(spoil)
        for number, key in enumerate(keys):
            house.put(key, portrait(number + seed))
        tally = drained(house, keys, 90 + 3 * n)
        spoiled = house.s3.spoiled
        house.s3.spoil(PASS)
        tally = drained(house, keys, 60) if set(tally.statuses) != {"done"} else tally
        stage = _longest_stage(tally)
        kinds[kind] = {"spoilt": spoiled, "statuses": tally.statuses, "longest_stage_s": stage}
        lost, duplicates, uploads = lost + tally.lost, duplicates + tally.duplicates, uploads + n
        blocked, broken = max(blocked, stage), broken + _broken(house, tally)
    done = all(set(one["statuses"]) == {"done"} and one["spoilt"] for one in kinds.values())
    return {
        "n": n, "uploads": uploads, "lost": lost, "duplicates": duplicates, "kinds": kinds, "longest_stage_s": blocked,
        "broken_outputs": broken, "passed": done and not lost and not duplicates and not broken and blocked <= MOST_BLOCKED_S,
    }  # fmt: skip


def store_hang(house: House, n: int, seed: int) -> dict[str, Any]:
    """The source of `n` uploads never comes; then it does. Nothing waits for more than a minute, and the others go on."""
    prefix = f"hang-{int(time.time())}"
    stuck, free = [f"{prefix}/stuck-{number}.jpg" for number in range(n)], [f"{prefix}/free-{number}.jpg" for number in range(5)]
    house.s3.spoil(Spoil("hang", match="stuck"))
    for number, key in enumerate([*stuck, *free]):
        house.put(key, portrait(number + seed))
    until(lambda: house.s3.spoiled > 0, "the first trouble", 30)
    others = drained(house, free, 150)
    house.s3.spoil(PASS)
    tally = drained(house, [*stuck, *free], 150)
    stage = _longest_stage(tally)
    passed = not tally.lost and not tally.duplicates and set(tally.statuses) == {"done"} and others.statuses == {"done": len(free)}
    return {**tally.figures(), "n": n, "longest_stage_s": stage, "passed": passed and stage <= MOST_BLOCKED_S}


def store_permanent(house: House, n: int, seed: int) -> dict[str, Any]:
    """403 and 404 of the source end the job at the first attempt, with a sentence."""
    outcome, seconds, attempts, sentences = {}, [], [], []
    lost = duplicates = 0
    for status in (403, 404):
        prefix = f"no-{int(time.time())}-{status}"
        keys = [f"{prefix}/{number}.jpg" for number in range(n)]
        house.s3.spoil(Spoil("status", status, 1.0, f"GET /inbox/{prefix}"))
        for number, key in enumerate(keys):
            house.put(key, portrait(number + seed))
        tally = drained(house, keys, 60)
        outcome[str(status)] = tally.statuses
        lost, duplicates = lost + tally.lost, duplicates + tally.duplicates
        seconds += [(job.finished_at or 0) - (job.started_at or 0) for job in tally.jobs.values()]
        attempts += [sum(row.what == "claimed" for row in history) for history in tally.history.values()]
        sentences += [job.reason or "" for job in tally.jobs.values()]
    house.s3.spoil(PASS)
    passed = outcome == {"403": {"failed": n}, "404": {"source_gone": n}} and max(attempts) == 1 and all(sentences)
    return {
        "n": n, "uploads": 2 * n, "lost": lost, "duplicates": duplicates, "statuses": outcome, "attempts_max": max(attempts),
        "seconds_max": percentile(seconds, 1), "reasons": len(set(sentences)), "passed": passed and not lost and not duplicates,
    }  # fmt: skip


def store_replaced(house: House, n: int, seed: int) -> dict[str, Any]:
    """The object is replaced between two stages, and no copy is kept: the old job says so, the new upload has its own result."""
    prefix = f"replaced-{int(time.time())}"
    keys = [f"{prefix}/{number}.jpg" for number in range(n)]
    wrong = 0
    for number, key in enumerate(keys):
        order = house.order("classified", "sleep", key, amount=1.0)
        house.put(key, portrait(number, tinted=False))
        until(lambda order=order: house.taken(order), "the judgement", 60)  # type: ignore[misc]
        for folder in (house.settings.scratch_dir, house.settings.scratch_dir.with_name(PIXELS)):
            for copy in folder.glob("*"):
                copy.unlink(missing_ok=True)
        house.put(key, portrait(1000 + number, tinted=True))
    with suppress(Impatient):
        until(lambda: sum(job.finished_at is not None for job in _rows(house, keys)) >= 2 * n, "the end of all", 120)
    rows = _rows(house, keys)
    for key in keys:
        both = sorted((job for job in rows if job.key == key), key=lambda job: job.created_at)
        if len(both) != 2:
            wrong += 1
            continue
        first, second = both
        verdict = json.loads(house.store.fetch("results", str(second.result_key), max_bytes=10**6))["verdict"] if second.result_key else ""
        wrong += (first.status, second.status, verdict) != ("source_gone", "done", "manipulated")
    statuses = {status: sum(job.status == status for job in rows) for status in {job.status for job in rows}}
    lost, duplicates = 2 * n - sum(job.finished_at is not None for job in rows), max(0, len(rows) - 2 * n)
    return {
        "n": n, "uploads": 2 * n, "lost": max(0, lost), "duplicates": duplicates, "statuses": statuses, "wrong": wrong,
        "passed": not wrong and lost == duplicates == 0,
    }  # fmt: skip


def _rows(house: House, keys: list[str]) -> list[Any]:
    from tests.faults.outcome import jobs

    return jobs(house.db, keys)


def _longest_stage(tally: Any) -> float:
    """Seconds from a claim to whatever came next of it, at most."""
    spans = [after.at - before.at for history in tally.history.values() for before, after in pairwise(history) if before.what == "claimed"]
    return round(max(spans, default=0.0), 1)


def _broken(house: House, tally: Any) -> int:
    """Results that are not whole: every named object is read, the picture to its end."""
    from pipeline.images import ImageRefused, Limits, read

    broken = 0
    for job in tally.jobs.values():
        if job.status != "done":
            continue
        try:
            json.loads(house.store.fetch("results", job.result_key, max_bytes=10**6))
            read(house.store.fetch("results", job.annotated_key, max_bytes=10**8), Limits.of(house.settings))
        except (ValueError, ImageRefused):
            broken += 1
    return broken
