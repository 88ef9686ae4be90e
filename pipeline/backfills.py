"""Back-fills: jobs for what lay in an inbox before anybody listened to it. Many at once, and never in the way of fresh uploads.

A listing is taken chunk by chunk. Each chunk is one transaction, which makes the jobs that are missing and writes down the
key it came to, so that whoever goes on after a kill goes on right there. The rule for what is one upload is that of
`ledger.accept`; the jobs are of the least urgency.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, cast

from sqlalchemy import Table, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pipeline import identity, ledger
from pipeline.database import Database, HistoryRow, JobRow, now
from pipeline.identity import FIELDS, Known
from pipeline.inboxes import Inbox
from pipeline.jobs import Queue, Stage, Status, Upload, new_id
from pipeline.ledger import LedgerError
from pipeline.tables.inboxes import BackfillRow

CHUNK = 200
"""So many objects are taken in one transaction: it holds a lock for each of their keys."""


class BackfillError(Exception):
    """The back-fill cannot go on; the message says why in one sentence."""

    permanent = True


@dataclass(frozen=True)
class Progress:
    """How far a back-fill is. `after`: everything up to this key is done. Times are seconds since the epoch."""

    inbox: str
    prefix: str
    after: str
    seen: int
    made: int
    left_alone: int
    started_at: float
    updated_at: float
    finished_at: float | None


def begin(db: Database, inbox: Inbox, prefix: str = "", *, anew: bool = False) -> Progress:
    """Start a back-fill of the keys of an inbox that begin with `prefix`, or go on with the one that was not finished.

    `anew`: from the first key in any case; otherwise, of two that begin at once, the second goes on with what the first began.
    Raises BackfillError if `prefix` lies outside of the inbox.
    """
    if prefix and not prefix.startswith(inbox.prefix):
        raise BackfillError(f"The inbox {inbox.name} begins with {inbox.prefix}: there is nothing of it under {prefix}.")
    with db.write() as session:
        row = session.get(BackfillRow, (inbox.name, prefix), with_for_update=True)
        at = session.execute(select(now())).scalar_one()
        if row is None:
            blank = {"after": "", "seen": 0, "made": 0, "left_alone": 0, "started_at": at, "updated_at": at}
            with suppress(IntegrityError), session.begin_nested():  # somebody else begins it at this moment
                session.execute(insert(BackfillRow).values(inbox=inbox.name, prefix=prefix, **blank))
            row = session.get_one(BackfillRow, (inbox.name, prefix), with_for_update=True)
        if anew or row.finished_at is not None:
            row.after, row.seen, row.made, row.left_alone = "", 0, 0, 0
            row.started_at, row.updated_at, row.finished_at = at, at, None
        session.flush()
        return _progress(row)


def all_of_them(db: Database) -> list[Progress]:
    """Every back-fill, the newest first."""
    with db.read() as session:
        return [_progress(row) for row in session.scalars(select(BackfillRow).order_by(BackfillRow.started_at.desc()))]


def take(db: Database, progress: Progress, inbox: Inbox, uploads: Sequence[Upload], *, seen: int, up_to: str) -> tuple[Progress, list[str]]:
    """Make the jobs that uploads of one inbox (at most `CHUNK`, as a listing tells them) are missing, and note that
    everything up to the key `up_to` is done. `seen`: how many objects that was, those no job is to be made of included.

    Returns the progress and the ids of the new jobs: wake them. Raises BackfillError if somebody else went on meanwhile.
    """
    with db.write() as session:
        made, possible = _take(session, inbox, uploads)
        counts = {"seen": progress.seen + seen, "made": progress.made + len(made), "left_alone": progress.left_alone + seen - possible}
        return _step(session, progress, after=up_to, updated_at=now(), **counts), made


def finish(db: Database, progress: Progress) -> Progress:
    """The listing came to its end."""
    with db.write() as session:
        return _step(session, progress, updated_at=now(), finished_at=now())


def waiting(db: Database) -> int:
    """How many jobs of the least urgency wait for a stage."""
    query = select(func.count()).where(JobRow.status == Status.QUEUED.value, JobRow.queue == Queue.BACKFILL.value)
    with db.read() as session:
        return int(session.execute(query).scalar_one())


def _step(session: Session, progress: Progress, **values: Any) -> Progress:
    as_seen = (BackfillRow.after == progress.after, BackfillRow.finished_at.is_(None), BackfillRow.started_at == progress.started_at)
    where = (BackfillRow.inbox == progress.inbox, BackfillRow.prefix == progress.prefix, *as_seen)
    statement = update(BackfillRow).where(*where).values(**values).returning(BackfillRow)
    row = session.scalars(statement, execution_options={"synchronize_session": False, "populate_existing": True}).one_or_none()
    if row is None:
        raise BackfillError(f"Another back-fill of {progress.inbox} is under way: let one of them be.")
    return _progress(row)


def _take(session: Session, inbox: Inbox, uploads: Sequence[Upload]) -> tuple[list[str], int]:
    possible = [upload for upload in map(identity.normal, uploads) if _possible(upload)]
    known = _known(session, inbox.bucket, sorted({upload.key for upload in possible}))
    jobs = []
    for upload in possible:
        if (found := identity.find(upload, known[upload.key])) is None:
            jobs.append(_job(upload, inbox))
        elif missing := identity.completed(upload, found):
            session.execute(update(JobRow).where(JobRow.id == found.job_id).values(**missing))
    if jobs:
        statement = insert(cast(Table, JobRow.__table__)).values(woken_at=now(), created_at=now())
        session.connection().execute(statement, jobs)
        session.connection().execute(insert(cast(Table, HistoryRow.__table__)).values(at=now()), [_accepted(job) for job in jobs])
    return [job["id"] for job in jobs], len(possible)


def _possible(upload: Upload) -> bool:
    try:
        ledger.check(upload)
    except LedgerError:
        return False
    return True


def _job(upload: Upload, inbox: Inbox) -> dict[str, Any]:
    known = {name: value for name, value in asdict(upload).items() if name != "modified"}
    waits = {"queue": Queue.BACKFILL.value, "inbox": inbox.name, "status": Status.QUEUED.value, "stage": Stage.EXTRACT.value}
    return {"id": new_id(), **known, **waits}


def _accepted(job: Mapping[str, Any]) -> dict[str, Any]:
    return {"job_id": job["id"], "what": "accepted", "stage": job["stage"], "detail": job["origin"]}


def _known(session: Session, bucket: str, keys: Sequence[str]) -> dict[str, list[Known]]:
    """The jobs of each key, newest first; nobody else looks for them until the transaction ends."""
    if keys and session.get_bind().dialect.name == "postgresql":  # on SQLite, writers are alone anyway
        locks = sorted(identity.lock_of(bucket, key) for key in keys)  # in one order, so that two back-fills do not block each other
        session.execute(text("select pg_advisory_xact_lock(k) from (select unnest(cast(:locks as bigint[])) as k) s"), {"locks": locks})
    columns = (JobRow.key, JobRow.id, *(JobRow.__table__.c[name] for name in FIELDS), JobRow.created_at)
    query = select(*columns).where(JobRow.bucket == bucket, JobRow.key.in_(keys))
    found: dict[str, list[Known]] = defaultdict(list)
    for key, *rest in session.execute(query.order_by(JobRow.created_at.desc(), JobRow.id.desc())):
        found[key].append(Known(*rest))
    return found


def _progress(row: BackfillRow) -> Progress:
    return Progress(**{name: getattr(row, name) for name in Progress.__dataclass_fields__})
