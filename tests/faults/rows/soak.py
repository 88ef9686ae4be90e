"""Thousands of uploads in one go: memory, descriptors and the broker stay as they are."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

from tests.faults.house import House
from tests.faults.outcome import count
from tests.faults.pictures import landscape, portrait

IN_FLIGHT = 60
PATIENCE_S = 60.0
PROGRAMS = ("extract", "classify", "render", "upkeep", "web")


def soak(house: House, n: int, seed: int) -> dict[str, Any]:
    """`n` uploads, a quarter without a face; samples of every program's memory and descriptors all along."""
    prefix, began = f"soak-{int(time.time())}", time.time()
    keys, samples = [], []
    broker_before = _broker(house)
    done, moved = 0, time.time()
    warm = max(20, n // 20)
    while done < n:
        while len(keys) < n and len(keys) - done < IN_FLIGHT:
            keys.append(f"{prefix}/{len(keys):06}.jpg")
            number = len(keys)
            house.put(keys[-1], landscape(number + seed) if number % 4 == 0 else portrait(number + seed, side=160))
        time.sleep(0.3)
        before, done = done, _done(house, prefix)
        moved = time.time() if done > before else moved
        if done >= warm:
            samples.append(_sample(house))
        if time.time() - moved > PATIENCE_S:
            break
    took = time.time() - began
    time.sleep(2.0)
    tally = count(house, set(keys))
    broker_after = _broker(house)
    half = len(samples) // 2
    memory, open_files = {}, {}
    for name in PROGRAMS:
        early, late = ([sample[name][0] for sample in part] for part in (samples[:half], samples[half:]))
        memory[name] = [round(statistics.median(part) / 1e6) for part in (early, late)] if early and late else [0, 0]
        counts = [sample[name][1] for sample in samples]
        open_files[name] = [round(statistics.median(part)) for part in (counts[:half], counts[half:])] if half else [0, 0]
    growth = max((late / early for early, late in memory.values() if early), default=0.0)
    leaked = max(late - early for early, late in open_files.values())
    passed = not tally.lost and not tally.duplicates and tally.statuses == {"done": n} and growth <= 1.1 and leaked <= 3
    return {
        **tally.figures(), "n": n, "images_per_s": round(n / took, 1), "memory_mb_early_late": memory, "memory_growth": round(growth, 3),
        "descriptors_early_late": open_files, "broker_mb": [broker_before[0], broker_after[0]],
        "broker_keys": [broker_before[1], broker_after[1]],
        "passed": passed and broker_after[1] <= broker_before[1] + 2 and broker_after[0] <= broker_before[0] + 2,
    }  # fmt: skip


def _done(house: House, prefix: str) -> int:
    from sqlalchemy import func, select

    from pipeline.database import JobRow

    with house.db.read() as session:
        over = JobRow.key.startswith(prefix), JobRow.finished_at.is_not(None)
        return session.scalar(select(func.count()).select_from(JobRow).where(*over)) or 0


def _broker(house: House) -> tuple[float, int]:
    with house.broker() as client:
        return round(int(client.info("memory")["used_memory"]) / 1e6, 1), int(client.dbsize())


def _sample(house: House) -> dict[str, tuple[int, int]]:
    """Bytes of memory and open files of each program, its children included."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {}
    for name in PROGRAMS:
        family = [house.keepers[name].pid]
        for pid in family:
            family += [child for child, parent in parents.items() if parent == pid]
        memory = files = 0
        for pid in family:
            try:
                memory += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                files += len(list(Path(f"/proc/{pid}/fd").iterdir()))
            except OSError:
                continue
        found[name] = (memory, files)
    return found
