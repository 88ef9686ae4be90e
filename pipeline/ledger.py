"""The ledger: every change of a job's state, each one transaction.

A change is a compare-and-set: an UPDATE whose WHERE names the state it starts from, and which counts as made only if it
changed a row. Workers hold a `Claim`, whose fence the row must still have: a worker that was too slow, and was swept,
changes nothing any more. Attempts are counted, and committed, before the work, so work that kills its worker is counted
too. Leases and due times go by the database's clock. History and webhook events are written in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, and_, delete, insert, not_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer

from pipeline import identity, outbox
from pipeline.changes import (
    QUEUE_NAMES,
    QUEUED,
    ago,
    backoff_s,
    change,
    clean,
    end,
    face_of,
    face_rows,
    face_values,
    in_paused_queue,
    in_queue,
    may_start,
    record,
    traceback_of,
)
from pipeline.database import Database, FaceRow, JobRow, PauseRow, now
from pipeline.jobs import Face, Judgement, ModelName, Queue, Reason, Stage, Status, Upload, Verdict, new_id, worst

REQUEUEABLE = (Status.FAILED, Status.REFUSED, Status.SOURCE_GONE, Status.CANCELLED)
"""What a person may send through again. A done job keeps its result: upload the image again to have it judged anew."""


class LedgerError(Exception):
    """What was asked for cannot be written down; the message says why in one sentence."""

    permanent = True


@dataclass(frozen=True)
class Accepted:
    """The one job of an upload, and whether this call made it."""

    job_id: str
    created: bool


@dataclass(frozen=True)
class Claim:
    """The right to do one stage of one job, until the lease ends or somebody takes it away (see `renew`).

    `attempt` counts from 1. `created_at`: seconds since the epoch, the database's clock. `timings_ms`: `wait` (from the
    upload's acceptance to the first claim) and what the earlier stages took.
    """

    job_id: str
    stage: Stage
    fence: int
    attempt: int
    upload: Upload
    queue: Queue
    worker: str
    created_at: float
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    inbox: str = "default"


# -- coming in


def accept(db: Database, upload: Upload, *, queue: Queue = Queue.BULK, inbox: str = "default") -> Accepted:
    """Make the one job of an upload, or find it: however often, by whichever adapter, in whatever order it is told.

    `pipeline.identity` has the rule. An upload known already fills in what its job did not know of it (version, ETag,
    sequencer), and puts a waiting job into `queue` if that is the more urgent. `inbox`: which one it came through.
    Wake the job right after: it counts as woken now, and is woken again only after `wake_after_s` (see `due`, `unwoken`).

    Raises LedgerError if a field cannot be stored: empty bucket or key, a NUL character, more characters than fit.
    """
    upload = identity.normal(upload)
    _check(upload)
    with db.write() as session:
        if (found := identity.find(upload, identity.known(session, upload))) is not None:
            if missing := identity.completed(upload, found):
                session.execute(update(JobRow).where(JobRow.id == found.job_id).values(**missing))
            if less := [one.value for one in queue.below]:
                waiting = and_(JobRow.status.in_([Status.QUEUED.value, Status.RUNNING.value]), JobRow.queue.in_(less))
                session.execute(update(JobRow).where(JobRow.id == found.job_id, waiting).values(queue=queue.value))
            return Accepted(found.job_id, created=False)
        known = {name: value for name, value in asdict(upload).items() if name != "modified"}
        waits = {"queue": queue.value, "inbox": inbox, "status": Status.QUEUED.value, "stage": Stage.EXTRACT.value}
        job = JobRow(id=new_id(), **known, **waits, woken_at=now(), created_at=now())
        session.add(job)
        session.flush()
        record(session, job.id, "accepted", Stage.EXTRACT, detail=upload.origin)
        return Accepted(job.id, created=True)


def _check(upload: Upload) -> None:
    if not upload.bucket or not upload.key:
        raise LedgerError("An upload needs a bucket and a key.")
    for name in ("bucket", "key", "version_id", "etag", "sequencer", "origin"):
        value: str = getattr(upload, name)
        room: int | None = getattr(JobRow.__table__.c[name].type, "length", None) or (1024 if name == "key" else None)
        if room is not None and len(value) > room:
            raise LedgerError(f"The upload's {name} has {len(value)} characters; {room} is the most.")
        if clean(value) != value:
            raise LedgerError(f"The upload's {name} has characters that are not text.")


# -- claims


def claim(db: Database, job_id: str, stage: Stage, *, worker: str, lease_s: float, max_attempts: int) -> Claim | None:
    """Take a queued job for its present stage; None: it is not to be had now (taken, over, elsewhere, paused, backing off).

    The attempt is counted and committed before this returns. A job whose attempts are used up, which happens only when
    `max_attempts` is lowered, fails instead. The first claim of a job announces `job.started`.
    """
    with db.write() as session:
        job = session.get(JobRow, job_id)
        if job is None or job.status != Status.QUEUED.value or job.stage != stage.value:
            return None
        ready, at = session.execute(select(and_(may_start(), not_(in_paused_queue())), now()).where(JobRow.id == job_id)).one()
        if not ready:
            return None
        as_seen = (JobRow.status == job.status, JobRow.stage == job.stage, JobRow.fence == job.fence)
        if job.attempts >= max_attempts:
            reason = f"The {stage.value} stage was tried {job.attempts} times without success."
            end(session, job_id, Status.FAILED, *as_seen, event="job.failed", reason=reason)
            return None
        first = job.started_at is None
        timings = job.timings_ms or {"wait": round(max(0.0, at - job.created_at) * 1000, 1)}
        claimed = change(
            session,
            job_id,
            *as_seen,
            status=Status.RUNNING.value,
            fence=job.fence + 1,
            attempts=job.attempts + 1,
            worker=clean(worker)[:255],
            lease_until=now() + lease_s,
            next_attempt_at=None,
            started_at=at if first else job.started_at,
            sequence=job.sequence + first,
            timings_ms=timings,
        )
        if claimed is None:
            return None
        record(session, job_id, "claimed", stage, claimed.attempts, claimed.worker)
        if first:
            outbox.announce_job(session, "job.started", claimed)
        upload = Upload(job.bucket, job.key, job.version_id, job.etag, job.sequencer, job.size, job.origin)
        return Claim(job_id, stage, job.fence, job.attempts, upload, Queue(job.queue), job.worker, job.created_at, timings, job.inbox)


def renew(db: Database, claim: Claim, lease_s: float) -> bool:
    """Hold the claim for another `lease_s` from now. False: it is lost (swept, cancelled): stop, nothing will be kept."""
    with db.write() as session:
        return change(session, claim.job_id, *_held(claim), lease_until=now() + lease_s) is not None


def position(db: Database, job_id: str) -> tuple[Status, Stage] | None:
    """Where a job stands; None: there is no such job."""
    with db.read() as session:
        found = session.execute(select(JobRow.status, JobRow.stage).where(JobRow.id == job_id)).one_or_none()
    return None if found is None else (Status(found.status), Stage(found.stage))


# -- going on


def extracted(db: Database, claim: Claim, *, sha256: str, width: int, height: int, faces: list[Face], milliseconds: float) -> bool:
    """Keep the faces and go on to `classify`, or to `render` where there is no face to judge. False: the claim is lost.

    Each face without a `reason` needs its crop, (size, size, 3) uint8, or LedgerError is raised. A face with one is
    `not_applicable` from here on.
    """
    judge = [face for face in faces if face.reason is None]
    for face in judge:
        if face.crop is None or face.crop.dtype != np.uint8 or face.crop.shape != (len(face.crop), len(face.crop), 3):
            raise LedgerError(f"Face {face.index} has no square uint8 RGB crop to judge.")
    outcome: dict[str, Any] = {}
    if not judge:
        reason = faces[0].reason if faces else Reason.NO_FACE
        outcome = {"verdict": Verdict.NOT_APPLICABLE.value, "reason": reason.value if reason else None}
    with db.write() as session:
        stage = Stage.CLASSIFY if judge else Stage.RENDER
        if not _advance(session, claim, stage, milliseconds, sha256=sha256, width=width, height=height, **outcome):
            return False
        if faces:
            session.execute(insert(FaceRow), [face_values(claim.job_id, face) for face in faces])
        return True


def faces(db: Database, job_id: str, *, crops: bool = False) -> list[Face]:
    """The faces of a job by index; with `crops`, those that are still kept (from extraction to the job's end)."""
    query = face_rows(job_id)
    with db.read() as session:
        rows = session.scalars(query if crops else query.options(defer(FaceRow.crop)))
        return [face_of(row, crop=crops) for row in rows]


def classified(db: Database, claim: Claim, judgements: list[Judgement], model: ModelName, milliseconds: float) -> bool:
    """Keep the judgements and go on to `render`. False: the claim is lost.

    The image gets its worst face's verdict, and the highest score of any face. Raises LedgerError if a face is left
    without a judgement or a judgement has no face.
    """
    with db.write() as session:
        of_model = {"model_name": model.name, "model_version": model.version, "model_sha256": model.sha256}
        if not (job := _advance(session, claim, Stage.RENDER, milliseconds, **of_model)):
            return False
        rows = {row.index: row for row in session.scalars(face_rows(claim.job_id).options(defer(FaceRow.crop)))}
        for judgement in judgements:
            if (row := rows.get(judgement.index)) is None:
                raise LedgerError(f"Job {claim.job_id} has no face {judgement.index} to judge.")
            row.score, row.verdict, row.evidence = judgement.score, judgement.verdict.value, judgement.evidence
            row.reason = None if judgement.reason is None else judgement.reason.value
        if unjudged := [row.index for row in rows.values() if row.verdict is None]:
            raise LedgerError(f"Job {claim.job_id} has no judgement of face {unjudged[0]}.")
        verdict = worst([Verdict(row.verdict) for row in rows.values()])
        job.verdict = verdict.value
        job.score = max((row.score for row in rows.values() if row.score is not None), default=None)
        job.reason = next((row.reason for row in rows.values() if row.reason), None) if verdict is Verdict.NOT_APPLICABLE else None
        return True


# -- coming to an end


def finished(db: Database, claim: Claim, *, annotated_key: str, result_key: str, milliseconds: float) -> bool:
    """The results are in the bucket: the job is `done`, and `job.done` announced. False: the claim is lost."""
    results: dict[str, Any] = {"annotated_key": annotated_key, "result_key": result_key, "error": None}
    results["timings_ms"] = {**claim.timings_ms, claim.stage.value: round(milliseconds, 1)}
    if claim.stage is not Stage.RENDER:
        raise LedgerError(f"Job {claim.job_id} cannot be done: it is at the {claim.stage.value} stage.")
    with db.write() as session:
        return end(session, claim.job_id, Status.DONE, *_held(claim), event="job.done", **results) is not None


def retry(db: Database, claim: Claim, error: BaseException, *, max_attempts: int, permanent: bool, sentence: str) -> Status:
    """The stage went wrong: `queued` again, to wait for 1, 5, 25, then always 125 s (+-20 %), or `failed` and `job.failed`
    announced, if it is permanent or the attempts are used up. Returns where the job stands now, whoever brought it there.

    `sentence` is for the user; the error's class and traceback are kept for operators.
    """
    sentence, told = clean(sentence), traceback_of(error)
    with db.write() as session:
        if permanent or claim.attempt >= max_attempts:
            job = end(session, claim.job_id, Status.FAILED, *_held(claim), event="job.failed", reason=sentence, error=told)
        else:
            wait = backoff_s(claim.attempt)
            job = change(session, claim.job_id, *_held(claim), **QUEUED, next_attempt_at=now() + wait, woken_at=0.0, error=told)
            if job is not None:
                record(session, job.id, "retried", claim.stage, claim.attempt, claim.worker, f"{sentence} Again in {wait:.1f} s.")
        if job is None:
            job = session.get_one(JobRow, claim.job_id)
        return Status(job.status)


def refuse(db: Database, claim: Claim, sentence: str) -> bool:
    """The input can never work; `sentence` says why. Announces `job.refused`. False: the claim is lost."""
    with db.write() as session:
        return end(session, claim.job_id, Status.REFUSED, *_held(claim), event="job.refused", reason=clean(sentence)) is not None


def source_gone(db: Database, claim: Claim, sentence: str) -> bool:
    """The object was deleted or replaced before it was read. Announces `job.refused`. False: the claim is lost."""
    with db.write() as session:
        return end(session, claim.job_id, Status.SOURCE_GONE, *_held(claim), event="job.refused", reason=clean(sentence)) is not None


def cancel(db: Database, job_id: str) -> bool:
    """Stop a queued or running job; what its worker still does is not kept. False: it is over, or there is none."""
    with db.write() as session:
        alive = JobRow.status.in_([Status.QUEUED.value, Status.RUNNING.value])
        return end(session, job_id, Status.CANCELLED, alive, fence=JobRow.fence + 1) is not None


def requeue(db: Database, job_id: str) -> bool:
    """Send a job that ended without a result (`REQUEUEABLE`) through from the start. False: it is not such a job.

    Wake it right after; otherwise the next sweep does.
    """
    with db.write() as session:
        over = JobRow.status.in_([status.value for status in REQUEUEABLE])
        fresh: dict[str, Any] = dict.fromkeys(("verdict", "score", "reason", "model_name", "model_version", "model_sha256", "finished_at"))
        fresh |= {"stage": Stage.EXTRACT.value, "fence": JobRow.fence + 1, "attempts": 0, "next_attempt_at": None, "woken_at": 0.0}
        if change(session, job_id, over, **QUEUED, **fresh) is None:
            return False
        session.execute(delete(FaceRow).where(FaceRow.job_id == job_id))
        record(session, job_id, "requeued", Stage.EXTRACT)
        return True


# -- upkeep


def sweep(db: Database, *, max_attempts: int, limit: int = 500) -> list[str]:
    """Take back up to `limit` expired leases: queued again, or `failed` where the attempts are used up.

    Returns the ids of those queued again; they are `due` at once. Any number of sweepers may run.
    """
    expired = and_(JobRow.status == Status.RUNNING.value, JobRow.lease_until < ago(0.0))
    columns = (JobRow.id, JobRow.fence, JobRow.stage, JobRow.attempts, JobRow.worker)
    with db.read() as session:
        found = session.execute(select(*columns).where(expired).order_by(JobRow.lease_until).limit(limit)).all()
    requeued = []
    for job_id, fence, stage, attempts, worker in found:
        as_seen = (expired, JobRow.fence == fence)
        with db.write() as session:
            if attempts >= max_attempts:
                reason = f"The {stage} stage was tried {attempts} times; the last time its worker died or stalled."
                end(session, job_id, Status.FAILED, *as_seen, event="job.failed", reason=reason)
            elif change(session, job_id, *as_seen, **QUEUED, next_attempt_at=None, woken_at=0.0) is not None:
                record(session, job_id, "swept", Stage(stage), attempts, worker, "The worker died or stalled.")
                requeued.append(job_id)
    return requeued


def due(db: Database, *, wake_after_s: float, limit: int = 500, queue: Queue | None = None) -> list[tuple[str, Stage, Queue]]:
    """Queued jobs whose message seems lost, or whose backoff has passed: at most `limit`, the longest unwoken first.

    They count as woken now: wake them, and where that fails call `unwoken`. Jobs of paused queues are left out.
    """
    late = and_(JobRow.status == Status.QUEUED.value, JobRow.woken_at < ago(wake_after_s), may_start(), not_(in_paused_queue()))
    late = late if queue is None else and_(late, JobRow.queue == queue.value)
    with db.write() as session:
        # A CTE runs once; PostgreSQL may run a subquery for each row, its limit then limits nothing.
        ids = select(JobRow.id).where(late).order_by(JobRow.woken_at).limit(limit).with_for_update(skip_locked=True).cte("chosen")
        chosen = update(JobRow).where(JobRow.id.in_(select(ids.c.id)), late).values(woken_at=now())
        rows = session.execute(chosen.returning(JobRow.id, JobRow.stage, JobRow.queue).execution_options(synchronize_session=False)).all()
    return [(job_id, Stage(stage), Queue(queue)) for job_id, stage, queue in rows]


def woken(db: Database, job_id: str) -> None:
    """A message for the job has been sent just now."""
    with db.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id, JobRow.status == Status.QUEUED.value).values(woken_at=now()))


def unwoken(db: Database, job_ids: list[str]) -> None:
    """The messages for these jobs could not be sent: they are due again at once."""
    with db.write() as session:
        session.execute(update(JobRow).where(JobRow.id.in_(job_ids), JobRow.status == Status.QUEUED.value).values(woken_at=0.0))


def pause(db: Database, queue: str) -> None:
    """Let no more jobs of a queue start; those that run go on. `queue` is a kind (`bulk`, `backfill`: all its stages) or
    one queue of one stage (`extract`, `interactive.extract`). Raises LedgerError for any other name."""
    if queue not in QUEUE_NAMES:
        raise LedgerError(f"There is no queue {queue!r}: it is one of {', '.join(QUEUE_NAMES)}.")
    with suppress(IntegrityError), db.write() as session:  # paused already: by now, or by somebody at this moment
        session.execute(insert(PauseRow).values(queue=queue, paused_at=now()))


def resume(db: Database, queue: str) -> None:
    """Let the jobs of a queue start again: those that waited are due at once."""
    with db.write() as session:
        session.execute(delete(PauseRow).where(PauseRow.queue == queue))
        session.execute(update(JobRow).where(JobRow.status == Status.QUEUED.value, in_queue(queue)).values(woken_at=0.0))


def paused(db: Database) -> set[str]:
    """The names that are paused, as given to `pause`."""
    with db.read() as session:
        return set(session.scalars(select(PauseRow.queue)))


# -- smaller words


def _held(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return (JobRow.status == Status.RUNNING.value, JobRow.stage == claim.stage.value, JobRow.fence == claim.fence)


def _advance(session: Session, claim: Claim, to: Stage, milliseconds: float, **values: Any) -> JobRow | None:
    timings = {**claim.timings_ms, claim.stage.value: round(milliseconds, 1)}
    values |= {"stage": to.value, "attempts": 0, "next_attempt_at": None, "woken_at": now(), "timings_ms": timings, "error": None}
    job = change(session, claim.job_id, *_held(claim), **QUEUED, **values)
    if job is not None:
        record(session, job.id, "advanced", to, worker=claim.worker)
    return job
