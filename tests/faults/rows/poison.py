"""Uploads that end the process which reads them: by a crash in native code, by memory without end, by never coming back."""

from __future__ import annotations

import time
from typing import Any

from tests.faults.house import House
from tests.faults.outcome import drained
from tests.faults.pictures import portrait

KINDS = ("segfault", "memory", "hang")
EVERY = 20


def poison(house: House, n: int, seed: int) -> dict[str, Any]:
    """Every twentieth upload is poison, the kinds in turn. At most 3 attempts, then failed with a reason; all others finish."""
    began = time.time()
    prefix = f"poison-{int(began)}"
    for kind in KINDS:
        house.order("decode", kind, f"{prefix}/{kind}", always=True)
    bad = [f"{prefix}/{KINDS[number % 3]}-{number}.jpg" for number in range(max(1, n // EVERY))]
    good = [f"{prefix}/good-{number}.jpg" for number in range(n - len(bad))]
    for number, key in enumerate(good):
        house.put(key, portrait(number + seed))
        if number % (EVERY - 1) == 0 and number // (EVERY - 1) < len(bad):
            house.put(bad[number // (EVERY - 1)], portrait(10_000 + number))
    for key in bad:
        if not any(one.key == key for one in house.store.listing(house.settings.inbox_bucket, key)):
            house.put(key, portrait(20_000))
    tally = drained(house, [*good, *bad], 120 + 45 * len(bad))
    house.forget_orders()
    dead = [tally.jobs[key] for key in bad if key in tally.jobs]
    seconds = [round((job.finished_at or 0) - (job.started_at or 0), 1) for job in dead]
    attempts = [sum(row.what == "claimed" for row in tally.history[job.id]) for job in dead]
    reasons = sorted({job.reason or "" for job in dead})
    well = all(tally.jobs[key].status == "done" for key in good if key in tally.jobs)
    passed = not tally.lost and not tally.duplicates and well and all(job.status == "failed" and job.reason for job in dead)
    return {
        **tally.figures(), "n": n, "poison": len(bad), "attempts_max": max(attempts), "dead_lettered_s_max": max(seconds),
        "reasons": reasons, "passed": passed and max(attempts) <= 3 and max(seconds) <= 60,
    }  # fmt: skip
