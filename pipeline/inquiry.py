"""What others ask about jobs. Reads only; every change is the ledger's."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from pipeline import identity
from pipeline.changes import clean
from pipeline.database import Database, HistoryRow, JobRow, now
from pipeline.jobs import Queue, Stage, Status, Upload, Verdict

MAX_PAGE = 1000


class InquiryError(Exception):
    """The question makes no sense; the message says why, in one sentence."""

    permanent = True


def job(db: Database, job_id: str) -> JobRow | None:
    """The job, or None if there is none of that id. The row is detached: read it, don't change it."""
    with db.read() as session:
        return session.get(JobRow, job_id)


def page(
    db: Database,
    *,
    status: Status | None = None,
    verdict: Verdict | None = None,
    prefix: str | None = None,
    origin: str | None = None,
    inboxes: Collection[str] = (),
    after: str | None = None,
    limit: int,
) -> tuple[list[JobRow], str | None]:
    """Up to `limit` (1 to 1,000) jobs, newest first, and the cursor to pass as `after` for the next page; None: no more.

    Keyset pages: a page costs the same however far down it lies, and jobs that arrive meanwhile shift nothing.
    `prefix` is of the object key, case-sensitive; `inboxes` empty: of all. Raises InquiryError if `after` is not a cursor of ours.
    """
    limit = max(1, min(limit, MAX_PAGE))
    query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit + 1)
    if status is not None:
        query = query.where(JobRow.status == status.value)
    if verdict is not None:
        query = query.where(JobRow.verdict == verdict.value)
    if prefix:
        query = query.where(func.substr(JobRow.key, 1, len(prefix)) == prefix)
    if origin is not None:
        query = query.where(JobRow.origin == origin)
    if inboxes:
        query = query.where(JobRow.inbox.in_(inboxes))
    if after is not None:
        query = query.where(tuple_(JobRow.created_at, JobRow.id) < tuple_(*_place(after)))
    with db.read() as session:
        rows = list(session.scalars(query))
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], _cursor(rows[limit - 1])


def _cursor(row: JobRow) -> str:
    return base64.urlsafe_b64encode(json.dumps([row.created_at, row.id]).encode()).decode().rstrip("=")


def _place(cursor: str) -> tuple[float, str]:
    try:
        created_at, job_id = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if isinstance(created_at, float) and isinstance(job_id, str) and clean(job_id) == job_id:
            return created_at, job_id
    except (ValueError, TypeError, binascii.Error):
        pass
    raise InquiryError("The page cursor is not one that an earlier page gave.")


def history(db: Database, job_id: str) -> list[HistoryRow]:
    """What happened to a job, oldest first; empty for an unknown job."""
    with db.read() as session:
        return list(session.scalars(select(HistoryRow).where(HistoryRow.job_id == job_id).order_by(HistoryRow.id)))


def counts(db: Database, inboxes: Collection[str] = ()) -> dict[str, int]:
    """How many jobs stand at each status, every status named. `inboxes` empty: of all."""
    query = select(JobRow.status, func.count()).group_by(JobRow.status)
    with db.read() as session:
        found = session.execute(query.where(JobRow.inbox.in_(inboxes)) if inboxes else query).all()
    return {status.value: 0 for status in Status} | {row[0]: int(row[1]) for row in found}


@dataclass(frozen=True)
class Standing:
    """How everything stands at one moment.

    Attributes:
        counts: jobs at each status, every status named.
        backlog: see `backlog`.
        oldest_s: seconds since the oldest of the queued jobs was accepted; 0 if none is queued.
    """

    counts: dict[str, int]
    backlog: dict[tuple[Stage, Queue], int]
    oldest_s: float


def standing(db: Database) -> Standing:
    """See `Standing`. The queued rows are read once for all three: a hundred thousand of them may wait."""
    others = select(JobRow.status, func.count()).where(JobRow.status.in_([one.value for one in Status if one is not Status.QUEUED]))
    with db.read() as session:
        at = session.execute(select(now())).scalar_one()
        waiting = _waiting(session)
        found = session.execute(others.group_by(JobRow.status)).all()
    counts = {status.value: 0 for status in Status} | {status: int(number) for status, number in found}
    counts[Status.QUEUED.value] = sum(number for number, _ in waiting.values())
    oldest = min((since for _, since in waiting.values()), default=at)
    return Standing(counts, {where: number for where, (number, _) in waiting.items()}, at - oldest)


def backlog(db: Database) -> dict[tuple[Stage, Queue], int]:
    """How many queued jobs wait for each stage, by urgency; what has none is left out."""
    with db.read() as session:
        return {where: number for where, (number, _) in _waiting(session).items()}


def _waiting(session: Session) -> dict[tuple[Stage, Queue], tuple[int, float]]:
    """Of the queued jobs of each stage and urgency how many there are, and when the oldest was accepted."""
    query = select(JobRow.stage, JobRow.queue, func.count(), func.min(JobRow.created_at)).where(JobRow.status == Status.QUEUED.value)
    found = session.execute(query.group_by(JobRow.stage, JobRow.queue))
    return {(Stage(stage), Queue(queue)): (number, since) for stage, queue, number, since in found}


def unknown(db: Database, uploads: Sequence[Upload]) -> list[Upload]:
    """Of the uploads of one bucket, as a listing tells them, those whose version, or else whose ETag, has no job of its key yet.

    One query for a whole page of a listing (some 1,000 keys), to spare `ledger.accept` what it would find known anyway.
    """
    keys = {upload.key for upload in uploads}
    buckets = {upload.bucket for upload in uploads}
    query = select(JobRow.bucket, JobRow.key, JobRow.version_id, JobRow.etag).where(JobRow.bucket.in_(buckets), JobRow.key.in_(keys))
    with db.read() as session:
        found = session.execute(query.distinct()).all()
    etags = {(bucket, key, etag) for bucket, key, _, etag in found}
    versions = {(bucket, key, version_id) for bucket, key, version_id, _ in found}

    def known(upload: Upload) -> bool:
        one = identity.normal(upload)
        if one.version_id:
            return (one.bucket, one.key, one.version_id) in versions
        return (one.bucket, one.key, one.etag) in etags

    return [upload for upload in uploads if not known(upload)]
