"""One worker whose clock is an hour off: leases go by the database's clock, so it steals none and none is stolen from it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.faults.house import House
from tests.faults.outcome import drained
from tests.faults.pictures import portrait

SKEWED = """
import time
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {seconds}
time.time_ns = lambda: _time_ns() + {seconds} * 10**9
"""
"""Read by the interpreter before anything else: all that asks Python for the time gets a wrong one."""


def clock(house: House, n: int, seed: int) -> dict[str, Any]:
    """`n` uploads with the clocks of one worker and of upkeep an hour ahead, then behind, and jobs that outlast a lease."""
    stolen = lost = duplicates = reruns = 0
    statuses: dict[str, int] = {}
    for hours in (1, -1):
        folder = house.root / f"clock{hours}"
        folder.mkdir(exist_ok=True)
        Path(folder, "sitecustomize.py").write_text(SKEWED.format(seconds=hours * 3600))
        _restart(house, ("extract", "upkeep"), str(folder))
        prefix = f"clock-{int(time.time())}"
        keys = [f"{prefix}/{number}.jpg" for number in range(n)]
        house.order("decoded", "sleep", keys[0], amount=house.settings.lease_s * 1.5)
        house.order("rendered", "sleep", keys[1 % n], amount=house.settings.lease_s * 1.5)
        for number, key in enumerate(keys):
            house.put(key, portrait(number + seed))
        tally = drained(house, keys, 90)
        stolen += sum(row.what == "swept" for history in tally.history.values() for row in history)
        lost, duplicates, reruns = lost + tally.lost, duplicates + tally.duplicates, reruns + tally.reruns
        statuses = {status: statuses.get(status, 0) + number for status, number in tally.statuses.items()}
    _restart(house, ("extract", "upkeep"), None)
    passed = not (stolen or lost or duplicates or reruns) and statuses == {"done": 2 * n}
    return {
        "n": n, "uploads": 2 * n, "lost": lost, "duplicates": duplicates, "statuses": statuses, "stolen_leases": stolen,
        "reruns": reruns, "passed": passed,
    }  # fmt: skip


def _restart(house: House, names: tuple[str, ...], first: str | None) -> None:
    for name in names:
        keeper = house.keepers[name]
        house.stop(name)
        kept = keeper.environment["PYTHONPATH"].split(":")
        kept = [path for path in kept if "/clock" not in path]
        keeper.environment["PYTHONPATH"] = ":".join([*([first] if first else []), *kept])
        house.start(name)
