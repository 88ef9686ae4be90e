"""What became of uploads: lost is an upload without a terminal state, a duplicate a second job, output set or event of one."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from pipeline.database import Database, EventRow, HistoryRow, JobRow
from pipeline.jobs import Status
from tests.faults.house import House, Impatient, until
from webhooks.claiming import LEASE_S

ENDS = ("job.done", "job.failed", "job.refused")
OVER = tuple(status.value for status in Status if status.terminal)


def jobs(db: Database, keys: Iterable[str]) -> list[JobRow]:
    """The jobs of these keys, the oldest first."""
    with db.read() as session:
        found = [row for part in _parts(keys) for row in session.scalars(select(JobRow).where(JobRow.key.in_(part)))]
    return sorted(found, key=lambda job: job.created_at)


def over(db: Database, keys: Iterable[str]) -> set[str]:
    """Those of the keys that have a job which is over."""
    found: set[str] = set()
    with db.read() as session:
        for part in _parts(keys):
            found.update(session.scalars(select(JobRow.key).where(JobRow.key.in_(part), JobRow.finished_at.is_not(None))))
    return found


def _parts(keys: Iterable[str]) -> list[list[str]]:
    """At most 500 at a time: a statement takes only so many."""
    every = list(keys)
    return [every[start : start + 500] for start in range(0, len(every), 500)]


def histories(db: Database, job_ids: Sequence[str]) -> dict[str, list[HistoryRow]]:
    """What happened to each, in order."""
    found: dict[str, list[HistoryRow]] = {job_id: [] for job_id in job_ids}
    with db.read() as session:
        for start in range(0, len(job_ids), 500):
            these = HistoryRow.job_id.in_(job_ids[start : start + 500])
            for row in session.scalars(select(HistoryRow).where(these).order_by(HistoryRow.id)):
                found[row.job_id].append(row)
    return found


@dataclass
class Tally:
    """The count of one set of uploads."""

    uploads: int
    lost: int
    duplicates: int
    statuses: dict[str, int]
    reruns: int
    """Claims beyond the one of each stage."""
    jobs: dict[str, JobRow] = field(repr=False)
    history: dict[str, list[HistoryRow]] = field(repr=False)

    def figures(self) -> dict[str, Any]:
        """As they go into the report."""
        return {"uploads": self.uploads, "lost": self.lost, "duplicates": self.duplicates, "statuses": self.statuses}


def drained(house: House, keys: Iterable[str], seconds: float) -> Tally:
    """Wait until every key has a job that is over and all webhooks are out, or so many seconds; then count."""
    wanted = set(keys)
    left = set(wanted)

    def ended() -> bool:
        with suppress(SQLAlchemyError):  # it may be away
            left.difference_update(over(house.db, left))
        return not left

    try:
        until(ended, "the end of all", seconds)
        until(lambda: not missing(house, wanted), "the webhooks", LEASE_S + 15, look_s=0.2)
    except Impatient:
        pass
    return count(house, wanted)


def missing(house: House, keys: set[str]) -> list[str]:
    """The jobs whose end the receiver has not heard of."""
    told = {job_id for _, kind, job_id in house.heard if kind in ENDS}
    return [job.id for job in jobs(house.db, keys) if job.status in OVER and job.id not in told]


def count(house: House, keys: set[str]) -> Tally:
    """Count as things stand."""
    found = jobs(house.db, keys)
    per_key = Counter(job.key for job in found)
    history = histories(house.db, [job.id for job in found])
    lost = sum(1 for key in keys if not any(job.key == key and job.status in OVER for job in found))
    lost += len(missing(house, keys))
    duplicates = sum(number - 1 for number in per_key.values())
    duplicates += _outputs_too_many(house, found) + _events_too_many(house, {job.id for job in found})
    reruns = sum(_reruns(history[job.id]) for job in found)
    statuses = Counter(job.status for job in found)
    return Tally(len(keys), lost, duplicates, dict(statuses), reruns, {job.key: job for job in found}, history)


def _outputs_too_many(house: House, found: list[JobRow]) -> int:
    """Objects in the results bucket that no done job names, and such objects that are named and not there."""
    ours = {f"{job.key}/{job.id}/": job for job in found}
    there = {one.key for one in house.store.listing(house.settings.results_bucket)}
    named = {key for job in found if job.status == Status.DONE.value for key in (job.annotated_key, job.result_key) if key}
    left = {key for key in there if key.rpartition("/")[0] + "/" in ours and ours[key.rpartition("/")[0] + "/"].status == "done"}
    return len(left - named) + len(named - there)


def _events_too_many(house: House, job_ids: set[str]) -> int:
    with house.db.read() as session:
        rows = session.execute(select(EventRow.id, EventRow.type, EventRow.subject)).all()
    of_ends = Counter(row.subject for row in rows if row.subject in job_ids and row.type in ENDS)
    ids: dict[tuple[str, str], set[str]] = {}
    for event_id, kind, job_id in list(house.heard):
        if job_id in job_ids:
            ids.setdefault((kind, job_id), set()).add(event_id)
    return sum(number - 1 for number in of_ends.values()) + sum(len(seen) - 1 for seen in ids.values())


def _reruns(history: list[HistoryRow]) -> int:
    claimed = Counter(row.stage for row in history if row.what == "claimed")
    return sum(number - 1 for number in claimed.values())


def claimed_after(history: list[HistoryRow], at: float) -> float | None:
    """Seconds from a moment to the next claim of the job, or to its end; None: neither came."""
    return next((row.at - at for row in history if row.at >= at and row.what in ("claimed", *OVER)), None)


def percentile(values: Sequence[float], part: float) -> float | None:
    """By nearest rank; None of nothing."""
    return round(sorted(values)[min(len(values) - 1, math.ceil(part * len(values)) - 1)], 2) if values else None


def entry(path: Path, test: str) -> dict[str, Any]:
    """What the report says of a test; empty if it has not been run."""
    return next((one for one in _report(path) if one["test"] == test), {})


def _report(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def merge(path: Path, figures: dict[str, Any], *, onto: bool = False) -> None:
    """Put one test's figures in the report, in the place of its earlier ones; with `onto`, beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [one for one in _report(path) if one["test"] != figures["test"]]
    before = entry(path, figures["test"])
    if onto:
        figures = {**before, **figures}
    elif "naive" in before:  # it is run seldom, by itself
        figures = {"naive": before["naive"], **figures}
    written = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **figures}
    half = path.with_suffix(".half")
    half.write_text(json.dumps(sorted([*kept, written], key=lambda one: one["test"]), indent=1))
    half.replace(path)
