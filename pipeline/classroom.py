"""What others ask about trainings: one, a page, a curve, a history. Reads only; every change is that of `trainings`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pipeline.database import Database
from pipeline.jobs import Status
from pipeline.tables.training import TrainingHistoryRow, TrainingProgressRow, TrainingRow
from pipeline.trainings import Claim

STATUSES = (Status.QUEUED, Status.RUNNING, Status.DONE, Status.FAILED, Status.CANCELLED)
MAX_POINTS = 400


def one(db: Database, training_id: str) -> TrainingRow | None:
    """The training, or None if there is none of that id. The row is detached: read it, don't change it."""
    with db.read() as session:
        return session.get(TrainingRow, training_id)


def held(session: Session, claim: Claim) -> bool:
    """Whether a claim still stands, which cannot change before the end of the transaction."""
    row = session.get(TrainingRow, claim.training_id, with_for_update=True)
    return row is not None and (row.status, row.fence) == (Status.RUNNING.value, claim.fence)


def page(
    db: Database, *, status: Status | None = None, schedule: str | None = None, after: str | None = None, limit: int
) -> tuple[list[TrainingRow], str | None]:
    """Up to `limit` (1 to 1,000) trainings, newest first, and what to pass as `after` for the next page; None: no more.

    Ids grow with time, so that they order trainings as they were asked for; `after` is the last one seen.
    """
    limit = max(1, min(limit, 1000))
    query = select(TrainingRow).order_by(TrainingRow.id.desc()).limit(limit + 1)
    if status is not None:
        query = query.where(TrainingRow.status == status.value)
    if schedule is not None:
        query = query.where(TrainingRow.schedule == schedule)
    if after is not None:
        query = query.where(TrainingRow.id < after)
    with db.read() as session:
        rows = list(session.scalars(query))
    return rows[:limit], rows[limit - 1].id if len(rows) > limit else None


def counts(db: Database) -> dict[str, int]:
    """How many trainings stand at each status, every status named."""
    with db.read() as session:
        found = session.execute(select(TrainingRow.status, func.count()).group_by(TrainingRow.status)).all()
    return {status.value: 0 for status in STATUSES} | {row[0]: int(row[1]) for row in found}


def history(db: Database, training_id: str) -> list[TrainingHistoryRow]:
    """What happened to a training, oldest first."""
    query = select(TrainingHistoryRow).where(TrainingHistoryRow.training_id == training_id).order_by(TrainingHistoryRow.id)
    with db.read() as session:
        return list(session.scalars(query))


def curve(db: Database, training_id: str) -> list[dict[str, Any]]:
    """What the trainer told, in the order of its steps: what a resumed training told again stands once. At most `MAX_POINTS`
    (looks go before mere steps)."""
    query = select(TrainingProgressRow.told).where(TrainingProgressRow.training_id == training_id).order_by(TrainingProgressRow.id)
    with db.read() as session:
        lines = list(session.scalars(query))
    points: dict[tuple[int, int], dict[str, Any]] = {}
    for line in lines:
        place = (int(line.get("stage", 0)), int(line.get("step", 0)))
        if line.get("event") == "look" or points.get(place, {}).get("event") != "look":
            points[place] = dict(line)
    ordered = [points[place] for place in sorted(points)]
    if len(ordered) > MAX_POINTS:
        ordered = [point for point in ordered if point.get("event") == "look"] or ordered
    stride = -(-len(ordered) // MAX_POINTS) or 1
    return ordered[::stride] if stride == 1 or not ordered else [*ordered[:-1][::stride], ordered[-1]]
