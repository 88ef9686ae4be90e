"""A disk that takes no more: for the working copies of sources, and for the model cache.

Without being root a disk cannot be made full, but the largest file a process may write can be set: every write beyond it
fails half-way with an OSError, as on a full disk.
"""

from __future__ import annotations

import resource
import shutil
import time
from typing import Any

from tests.faults.house import House
from tests.faults.outcome import drained
from tests.faults.pictures import portrait
from tests.faults.rows.store import _broken

SCRATCH_MOST = 10_000
"""Bytes; fewer than any of the pictures has, more than a pool needs for its own shared memory."""


def disk_scratch(house: House, n: int, seed: int) -> dict[str, Any]:
    """No room for working copies: each upload is fetched again where it is needed, and nothing half-written is left."""
    prefix = f"full-{int(time.time())}"
    keys = [f"{prefix}/{number}.jpg" for number in range(n)]
    with _limited(house, ("extract", "render"), SCRATCH_MOST):
        for number, key in enumerate(keys):
            house.put(key, portrait(number + seed, side=400))
        tally = drained(house, keys, 150 + 5 * n)
        left = [path.name for path in house.settings.scratch_dir.glob("*")] if house.settings.scratch_dir.exists() else []
    passed = not tally.lost and not tally.duplicates and tally.statuses == {"done": n} and not left and not _broken(house, tally)
    return {**tally.figures(), "n": n, "left_behind": len(left), "passed": passed}


def disk_model(house: House, n: int, seed: int) -> dict[str, Any]:
    """No room for the model: the jobs wait and try again, no half model is kept, and with room they all come through."""
    prefix = f"nomodel-{int(time.time())}"
    keys = [f"{prefix}/{number}.jpg" for number in range(n)]
    house.stop("classify")
    shutil.rmtree(house.settings.model_cache_dir, ignore_errors=True)
    with _limited(house, ("classify",), 100):
        for number, key in enumerate(keys):
            house.put(key, portrait(number + seed))
        order = time.monotonic()
        while not (errors := _errors(house, keys)) and time.monotonic() - order < 60:
            time.sleep(0.05)
        cache = house.settings.model_cache_dir
        left = [str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()] if cache.exists() else []
    tally = drained(house, keys, 150)
    passed = not tally.lost and not tally.duplicates and tally.statuses == {"done": n} and not left and bool(errors)
    return {**tally.figures(), "n": n, "left_behind": len(left), "retried_with": sorted(errors), "passed": passed}


def _errors(house: House, keys: list[str]) -> set[str]:
    from tests.faults.outcome import count

    tally = count(house, set(keys))
    return {row.detail.split(":")[0] for history in tally.history.values() for row in history if row.what == "retried"}


class _limited:
    """These programs may write files of `most` bytes only; afterwards as ever."""

    def __init__(self, house: House, names: tuple[str, ...], most: int) -> None:
        self._house, self._names, self._most = house, names, most

    def __enter__(self) -> None:
        self._restart(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (self._most, self._most)))

    def __exit__(self, *exception: object) -> None:
        self._restart(None)

    def _restart(self, limits: Any) -> None:
        for name in self._names:
            keeper = self._house.keepers[name]
            self._house.stop(name)
            keeper.limits, keeper.piped = limits, limits is not None
            self._house.start(name)
