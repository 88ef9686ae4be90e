"""Queues that a person has paused: none of their jobs starts until they are resumed."""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from pipeline import audit
from pipeline.changes import QUEUE_NAMES, in_queue
from pipeline.database import Database, JobRow, PauseRow, now
from pipeline.jobs import Status
from pipeline.ledger import LedgerError


def pause(db: Database, queue: str, *, actor: str = "system") -> None:
    """Let no more jobs of a queue start; those that run go on. `queue` is a kind (`bulk`, `backfill`: all its stages) or
    one queue of one stage (`extract`, `interactive.extract`). Raises LedgerError for any other name."""
    if queue not in QUEUE_NAMES:
        raise _unknown(queue)
    with suppress(IntegrityError), db.write() as session:  # paused already: by now, or by somebody at this moment
        session.execute(insert(PauseRow).values(queue=queue, paused_at=now()))
        audit.note(session, actor, "queue.pause", queue)


def resume(db: Database, queue: str, *, actor: str = "system") -> None:
    """Let the jobs of a queue start again: those that waited are due at once. Raises LedgerError for a name that is none
    and is not paused."""
    with db.write() as session:
        there = session.execute(delete(PauseRow).where(PauseRow.queue == queue).returning(PauseRow.queue)).first()
        if there is None and queue not in QUEUE_NAMES:
            raise _unknown(queue)
        audit.note(session, actor, "queue.resume", queue[:255])
        session.execute(update(JobRow).where(JobRow.status == Status.QUEUED.value, in_queue(queue)).values(woken_at=0.0))


def paused(db: Database) -> set[str]:
    """The names that are paused, as given to `pause`."""
    with db.read() as session:
        return set(session.scalars(select(PauseRow.queue)))


def _unknown(queue: str) -> LedgerError:
    return LedgerError(f"There is no queue {queue!r}: it is one of {', '.join(QUEUE_NAMES)}.")
