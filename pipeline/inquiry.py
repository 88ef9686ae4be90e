"""What others ask about jobs. Reads only; every change is the ledger's."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Sequence

from sqlalchemy import func, select, tuple_

from pipeline import identity
from pipeline.changes import clean
from pipeline.database import Database, HistoryRow, JobRow
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


def backlog(db: Database) -> dict[tuple[Stage, Queue], int]:
    """How many queued jobs wait for each stage, by urgency; what has none is left out."""
    query = select(JobRow.stage, JobRow.queue, func.count()).where(JobRow.status == Status.QUEUED.value)
    with db.read() as session:
        found = session.execute(query.group_by(JobRow.stage, JobRow.queue)).all()
    return {(Stage(stage), Queue(queue)): number for stage, queue, number in found}


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
