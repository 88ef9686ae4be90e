"""Which descriptions of an upload are of one and the same upload.

Every path of an upload event loses, repeats and shuffles, so several adapters may tell of one upload, each knowing
something else: SQS a version, an ETag and a sequencer; a webhook perhaps no ETag; the bucket sweep an ETag only. The
rule that makes exactly one job of them, among the jobs of the same bucket and key:

1. The same `version_id`, or the same `sequencer`, is the same upload.
2. Otherwise it is the same where no field contradicts: each of `version_id`, `etag`, `sequencer` is equal or unknown on
   one side; and the ETag is known to be equal or the job is the key's newest. What the job did not know yet is filled in,
   so the next description must match more. Not so if the object was written (`modified`) after the job was made: then
   the job stands for an earlier upload.
3. Without a version, a sequencer older than the newest of that key tells of bytes since overwritten: it makes no job.
4. Anything else is a new upload; so are the same bytes with a new version or a newer sequencer: somebody meant it.

A description with neither version nor sequencer (the sweep) never makes a second job of an ETag its key has had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import BigInteger, bindparam, func, or_, select
from sqlalchemy.orm import Session

from pipeline.brief import Brief, Statement
from pipeline.database import JobRow
from pipeline.jobs import Upload

FIELDS = ("version_id", "etag", "sequencer")

SKEW_S = 60.0
"""How far the clocks of the store and of the database may be apart."""


@dataclass(frozen=True)
class Known:
    """What is known of an upload that has a job. `created_at` is the database's clock."""

    job_id: str
    version_id: str
    etag: str
    sequencer: str
    created_at: float


def normal(upload: Upload) -> Upload:
    """The upload in the one form that is stored and compared.

    ETags lose their quotes. The version `null` of buckets without versions names nothing. Sequencers are compared from
    the left, the shorter padded with zeros on the right: upper case without trailing zeros sorts the same way as text.
    """
    return replace(
        upload,
        etag=upload.etag.strip('"'),
        version_id="" if upload.version_id == "null" else upload.version_id,
        sequencer=(upload.sequencer.upper().rstrip("0") or "0") if upload.sequencer else "",
    )


def find(upload: Upload, known: Sequence[Known]) -> Known | None:
    """The job that this upload has already, or, of outdated news, the job of the newest upload; None: it is new.

    Both sides in normal form. `known`: the jobs of the same bucket and key, newest first.
    """
    for job in known:
        if upload.version_id and job.version_id == upload.version_id:
            return job
    agreeing = [job for job in known if _agrees(upload, job)]
    for job in agreeing:
        if upload.sequencer and job.sequencer == upload.sequencer:
            return job
    candidates = [job for job in agreeing if not _is_later(upload, job)]
    for job in candidates:
        if upload.etag and job.etag == upload.etag:
            return job
    if candidates and candidates[0] is known[0]:
        return known[0]
    if upload.sequencer and not upload.version_id:
        newest = max(known, key=lambda job: job.sequencer, default=None)
        if newest is not None and newest.sequencer > upload.sequencer:
            return newest
    return None


def _agrees(upload: Upload, job: Known) -> bool:
    def fits(one: str, other: str) -> bool:
        return not one or not other or one == other

    if not fits(upload.version_id, job.version_id):
        return False
    if upload.sequencer and upload.sequencer == job.sequencer:
        return True
    return fits(upload.sequencer, job.sequencer) and fits(upload.etag, job.etag)


def _is_later(upload: Upload, job: Known) -> bool:
    """Whether the object was written after the job was made, so that the job must be of an earlier upload."""
    if not (upload.version_id or upload.sequencer) and upload.etag and upload.etag == job.etag:
        return False
    return upload.modified > job.created_at + SKEW_S


def completed(upload: Upload, job: Known) -> dict[str, str]:
    """The fields that the job did not know and the upload does, by column name.

    A job of a version learns nothing from who does not know versions: what they saw may be another version.
    """
    if not _agrees(upload, job) or (job.version_id and not upload.version_id):
        return {}
    return {name: value for name in FIELDS if (value := getattr(upload, name)) and not getattr(job, name)}


_LOCK = Statement(select(func.pg_advisory_xact_lock(bindparam("digest", type_=BigInteger))))
_OF_OBJECT = (
    select(JobRow.id, *(JobRow.__table__.c[name] for name in FIELDS), JobRow.created_at)
    .where(JobRow.bucket == bindparam("in_bucket"), JobRow.key == bindparam("at_key"))
    .order_by(JobRow.created_at.desc(), JobRow.id.desc())
    .limit(bindparam("most"))
)
_NEWEST = Statement(_OF_OBJECT)


def known(on: Brief | Session, upload: Upload, most: int = 100) -> list[Known]:
    """The jobs of the upload's bucket and key, newest first; nobody else looks for them until the transaction ends.

    Of an object that is overwritten all the time only the newest `most`, and of older ones those that share a field.
    """
    dialect = on.engine.dialect if isinstance(on, Brief) else on.get_bind().dialect
    if dialect.name == "postgresql":  # on SQLite, writers are alone anyway
        _LOCK.run(on, {"digest": lock_of(upload.bucket, upload.key)})
    which = {"in_bucket": upload.bucket, "at_key": upload.key, "most": most}
    jobs = [Known(*row) for row in _NEWEST.run(on, which)]
    shared = [JobRow.__table__.c[name] == value for name in FIELDS if (value := getattr(upload, name))]
    if len(jobs) == most and shared:
        older = [Known(*row) for row in Statement(_OF_OBJECT.where(or_(*shared))).run(on, which)]
        jobs += [job for job in older if job not in jobs]
    return jobs


def lock_of(bucket: str, key: str) -> int:
    """The number (64 bits, signed) that PostgreSQL locks while somebody looks for an object's jobs."""
    return int.from_bytes(hashlib.sha256(f"{bucket}\0{key}".encode()).digest()[:8], "big", signed=True)
