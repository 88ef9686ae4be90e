"""The ledger: every change of a job's state, each one transaction.

A change is a compare-and-set: an UPDATE whose WHERE names the state it starts from, and which counts as made only if it
changed a row. Workers hold a `Claim`, whose fence the row must still have: a worker that was too slow, and was swept,
changes nothing any more. Attempts are counted, and committed, before the work, so work that kills its worker is counted
too. Leases and due times go by the database's clock. History and webhook events are written in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, and_, delete, not_, select, update

from pipeline import audit, identity, outbox, steps
from pipeline.brief import Brief, Statement, brief
from pipeline.changes import (
    QUEUED,
    ago,
    backoff_s,
    change,
    clean,
    end,
    face_of,
    face_values,
    in_paused_queue,
    judgement_values,
    may_start,
    outcome,
    record,
    traceback_of,
    unfitting,
)
from pipeline.database import Database, FaceRow, JobRow, now
from pipeline.jobs import Face, Judgement, ModelName, Queue, Stage, Status, Upload, Verdict, nearest, new_id

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
    check(upload)
    with brief(db) as on:
        if (found := identity.find(upload, identity.known(on, upload))) is None:
            job_id = new_id()
            known = {name: value for name, value in asdict(upload).items() if name != "modified"}
            waits = {"queue": queue.value, "inbox": inbox, "status": Status.QUEUED.value, "stage": Stage.EXTRACT.value}
            nothing = {"fence": 0, "attempts": 0, "worker": "", "timings_ms": {}, "sequence": 0}
            steps.JOB.run(on, {"id": job_id, **known, **waits, **nothing})
            record(on, job_id, "accepted", Stage.EXTRACT, detail=upload.origin)
            return Accepted(job_id, created=True)
        if missing := identity.completed(upload, found):
            Statement(update(JobRow).where(JobRow.id == found.job_id).values(**missing)).run(on, {})
        if less := [one.value for one in queue.below]:
            waiting = and_(JobRow.status.in_([Status.QUEUED.value, Status.RUNNING.value]), JobRow.queue.in_(less))
            Statement(update(JobRow).where(JobRow.id == found.job_id, waiting).values(queue=queue.value)).run(on, {})
        return Accepted(found.job_id, created=False)


def check(upload: Upload) -> None:
    """Raise LedgerError if an upload, in its normal form, cannot be stored."""
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
    wanted = {"this": job_id, "at_stage": stage.value, "most": max_attempts, "by": clean(worker)[:255], "lease_s": lease_s}
    with brief(db) as on:
        first = steps.CLAIM_FIRST.run(on, wanted) if stage is Stage.EXTRACT else ()
        if taken := first or steps.CLAIM.run(on, wanted):
            [job] = taken
            record(on, job_id, "claimed", stage, job.attempts, job.worker)
            wait = {"wait": round(max(0.0, job.started_at - job.created_at) * 1000, 1)}
            if first:
                outbox.announce_job(on, "job.started", job, [], at=job.started_at)
            upload = Upload(job.bucket, job.key, job.version_id, job.etag, job.sequencer, job.size, job.origin)
            timings = job.timings_ms or wait
            return Claim(job_id, stage, job.fence, job.attempts, upload, Queue(job.queue), job.worker, job.created_at, timings, job.inbox)
    _give_up(db, job_id, stage, max_attempts)
    return None


def _give_up(db: Database, job_id: str, stage: Stage, max_attempts: int) -> None:
    """Fail a job that could be claimed but for its attempts."""
    with db.read() as session:
        spent = (JobRow.status == Status.QUEUED.value, JobRow.stage == stage.value, JobRow.attempts >= max_attempts)
        ready = (may_start(), not_(in_paused_queue()))
        found = session.execute(select(JobRow.fence, JobRow.attempts).where(JobRow.id == job_id, *spent, *ready)).one_or_none()
    if found is None:
        return
    with db.write() as session:
        reason = f"The {stage.value} stage was tried {found.attempts} times without success."
        end(session, job_id, Status.FAILED, *spent, JobRow.fence == found.fence, event="job.failed", reason=reason)


def renew(db: Database, claim: Claim, lease_s: float) -> bool:
    """Hold the claim for another `lease_s` from now. False: it is lost (swept, cancelled): stop, nothing will be kept."""
    with brief(db) as on:
        return bool(steps.RENEW.run(on, {**_holding(claim), "lease_s": lease_s}))


def position(db: Database, job_id: str) -> tuple[Status, Stage] | None:
    """Where a job stands; None: there is no such job."""
    with brief(db, write=False) as on:
        found = steps.PLACE.run(on, {"this": job_id})
    return (Status(found[0].status), Stage(found[0].stage)) if found else None


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
    outcome: dict[str, Any] = {"new_verdict": None, "new_reason": None}
    if not judge:
        outcome = {"new_verdict": Verdict.NOT_APPLICABLE.value, "new_reason": nearest(face.reason for face in faces).value}
    found = {"new_sha256": sha256, "new_width": width, "new_height": height, **outcome}
    with brief(db) as on:
        if not _advance(on, steps.EXTRACTED, claim, Stage.CLASSIFY if judge else Stage.RENDER, milliseconds, found):
            return False
        steps.FACE.many(on, [face_values(claim.job_id, face) for face in faces])
        return True


def faces(db: Database, job_id: str, *, crops: bool = False) -> list[Face]:
    """The faces of a job by index; with `crops`, those that are still kept (from extraction to the job's end)."""
    query = steps.THE_FACES_AND_CROPS if crops else steps.THE_FACES
    with brief(db, write=False) as on:
        rows = query.run(on, {"this": job_id})
    return [face_of(row, crop=crops) for row in rows]


def classified(db: Database, claim: Claim, judgements: list[Judgement], model: ModelName, milliseconds: float) -> bool:
    """Keep the judgements and go on to `render`. False: the claim is lost.

    The image gets its worst face's verdict, and the highest score of any face. Raises LedgerError if a face is left
    without a judgement or a judgement has no face.
    """
    of_model = {"new_model_name": model.name, "new_model_version": model.version, "new_model_sha256": model.sha256}
    with brief(db) as on:
        rows = steps.THE_FACES.run(on, {"this": claim.job_id})
        if wrong := unfitting(rows, judgements):
            if not steps.STILL_HELD.run(on, _holding(claim)):
                return False
            raise LedgerError(f"Job {claim.job_id} has no {wrong}.")
        found = of_model | outcome(rows, judgements)
        if not _advance(on, steps.CLASSIFIED, claim, Stage.RENDER, milliseconds, found):
            return False
        steps.JUDGE_FACE.many(on, [judgement_values(claim.job_id, judgement) for judgement in judgements])
        return True


# -- coming to an end


def finished(db: Database, claim: Claim, *, annotated_key: str, result_key: str, milliseconds: float) -> bool:
    """The results are in the bucket: the job is `done`, and `job.done` announced. False: the claim is lost."""
    if claim.stage is not Stage.RENDER:
        raise LedgerError(f"Job {claim.job_id} cannot be done: it is at the {claim.stage.value} stage.")
    timings = {**claim.timings_ms, claim.stage.value: round(milliseconds, 1)}
    results = {"new_annotated_key": annotated_key, "new_result_key": result_key, "new_timings_ms": timings}
    with brief(db) as on:
        if not (done := steps.DONE.run(on, {**_holding(claim), **results})):
            return False
        [job] = done
        faces = steps.DROP_CROPS.run(on, {"this": claim.job_id})
        record(on, job.id, "done", claim.stage, job.attempts, job.worker)
        verdicts = [face.verdict for face in sorted(faces, key=lambda face: face.index)]
        outbox.announce_job(on, "job.done", job, verdicts, at=job.finished_at)
        return True


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


def cancel(db: Database, job_id: str, *, actor: str = "system") -> bool:
    """Stop a queued or running job; what its worker still does is not kept. False: it is over, or there is none."""
    with db.write() as session:
        alive = JobRow.status.in_([Status.QUEUED.value, Status.RUNNING.value])
        if end(session, job_id, Status.CANCELLED, alive, fence=JobRow.fence + 1) is None:
            return False
        audit.note(session, actor, "job.cancel", job_id)
        return True


def requeue(db: Database, job_id: str, *, actor: str = "system") -> bool:
    """Send a job that ended without a result (`REQUEUEABLE`) through again; wake it right after. False: it is not such a job."""
    with db.write() as session:
        over = JobRow.status.in_([status.value for status in REQUEUEABLE])
        fresh: dict[str, Any] = dict.fromkeys(("verdict", "score", "reason", "model_name", "model_version", "model_sha256", "finished_at"))
        fresh |= {"stage": Stage.EXTRACT.value, "fence": JobRow.fence + 1, "attempts": 0, "next_attempt_at": None, "woken_at": 0.0}
        if change(session, job_id, over, **QUEUED, **fresh) is None:
            return False
        session.execute(delete(FaceRow).where(FaceRow.job_id == job_id))
        record(session, job_id, "requeued", Stage.EXTRACT)
        audit.note(session, actor, "job.retry", job_id)
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
    """Queued jobs whose message seems lost, or whose backoff has passed: at most `limit`, the longest unwoken first; each
    with its stage and the line in which its message belongs.

    They count as woken now: wake them, and where that fails call `unwoken`. Jobs of paused queues are left out.
    """
    late = and_(JobRow.status == Status.QUEUED.value, JobRow.woken_at < ago(wake_after_s), may_start(), not_(in_paused_queue()))
    late = late if queue is None else and_(late, JobRow.queue == queue.value)
    with db.write() as session:
        # A CTE runs once; PostgreSQL may run a subquery for each row, its limit then limits nothing.
        ids = select(JobRow.id).where(late).order_by(JobRow.woken_at).limit(limit).with_for_update(skip_locked=True).cte("chosen")
        chosen = update(JobRow).where(JobRow.id.in_(select(ids.c.id)), late).values(woken_at=now())
        chosen = chosen.returning(JobRow.id, JobRow.stage, JobRow.queue, JobRow.attempts, JobRow.next_attempt_at)
        rows = session.execute(chosen.execution_options(synchronize_session=False)).all()
    # whose worker died goes one line higher; what failed and waited, as all do while S3 is away, stays in its own
    return [(row.id, Stage(row.stage), Queue(row.queue).line(row.attempts if row.next_attempt_at is None else 0)) for row in rows]


def woken(db: Database, job_id: str) -> None:
    """A message for the job has been sent just now."""
    with db.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id, JobRow.status == Status.QUEUED.value).values(woken_at=now()))


def unwoken(db: Database, job_ids: list[str]) -> None:
    """The messages for these jobs could not be sent: they are due again at once."""
    with db.write() as session:
        session.execute(update(JobRow).where(JobRow.id.in_(job_ids), JobRow.status == Status.QUEUED.value).values(woken_at=0.0))


# -- smaller words


def _held(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return (JobRow.status == Status.RUNNING.value, JobRow.stage == claim.stage.value, JobRow.fence == claim.fence)


def _holding(claim: Claim) -> dict[str, Any]:
    """The values of a statement of `steps` on a job whose claim is held."""
    return {"this": claim.job_id, "at_stage": claim.stage.value, "held": claim.fence}


def _advance(on: Brief, step: Statement, claim: Claim, to: Stage, milliseconds: float, values: dict[str, Any]) -> bool:
    timings = {**claim.timings_ms, claim.stage.value: round(milliseconds, 1)}
    if not step.run(on, {**_holding(claim), "next_stage": to.value, "timings": timings, **values}):
        return False
    record(on, claim.job_id, "advanced", to, worker=claim.worker)
    return True
