"""The grammar of a change to a job: what the ledger writes its sentences with."""

from __future__ import annotations

import random
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from math import isqrt
from typing import Any, cast

import numpy as np
from sqlalchemy import ColumnElement, ScalarSelect, Select, Table, bindparam, case, insert, or_, select, update
from sqlalchemy.orm import Session

from pipeline import outbox
from pipeline.brief import Brief, Statement
from pipeline.database import FaceRow, HistoryRow, JobRow, PauseRow, now
from pipeline.jobs import Box, Face, Judgement, Quality, Queue, Reason, Stage, Status, Verdict, nearest, worst

BACKOFF_S = (1.0, 5.0, 25.0, 125.0)
"""Wait before the second attempt, the third and so on; the last holds from there on. Each +-20 %, so that jobs that failed
together do not all come back together."""
MAX_TRACEBACK = 20_000

QUEUE_NAMES = (*Queue, *Stage, *(kind.of(stage) for kind in Queue for stage in Stage if kind is not Queue.BULK))
"""What may be paused: a kind, and one kind's queue of one stage."""

QUEUED: dict[str, Any] = {"status": Status.QUEUED.value, "lease_until": None, "worker": ""}
"""Column values of a job that nobody works on."""


def change(session: Session, job_id: str, *as_seen: ColumnElement[bool], **values: Any) -> JobRow | None:
    """The compare-and-set: the row after the change, or None if it did not stand as seen, and nothing was changed."""
    statement = update(JobRow).where(JobRow.id == job_id, *as_seen).values(**values).returning(JobRow)
    return session.scalars(statement, execution_options={"synchronize_session": False, "populate_existing": True}).one_or_none()


def end(
    session: Session, job_id: str, status: Status, *as_seen: ColumnElement[bool], event: str | None = None, **values: Any
) -> JobRow | None:
    """Change to a terminal status: crops are dropped, history written and the event announced. None as of `change`."""
    ended: dict[str, Any] = {"status": status.value, "lease_until": None, "next_attempt_at": None, "finished_at": now()}
    if event is not None:
        ended["sequence"] = JobRow.sequence + 1
    job = change(session, job_id, *as_seen, **ended, **values)
    if job is None:
        return None
    session.connection().execute(_DROP_CROPS, {"job": job_id})
    detail = "" if status is Status.DONE else job.reason or ""
    record(session, job_id, status.value, Stage(job.stage), job.attempts, job.worker, detail)
    if event is not None:
        outbox.announce_job(session, event, job)
    return job


_NOTE = Statement(insert(cast(Table, HistoryRow.__table__)).values(at=now()), ["job_id", "what", "stage", "attempt", "worker", "detail"])
_DROP_CROPS = update(cast(Table, FaceRow.__table__)).where(FaceRow.job_id == bindparam("job"), FaceRow.crop.is_not(None)).values(crop=None)


def record(on: Brief | Session, job_id: str, what: str, stage: Stage, attempt: int = 0, worker: str = "", detail: str = "") -> None:
    """Append to the job's history."""
    row = {"job_id": job_id, "what": what, "stage": stage.value, "attempt": attempt, "worker": worker, "detail": detail}
    _NOTE.run(on, row)


def ago(seconds: float) -> ScalarSelect[float]:
    """A time in the past, for a query over many rows: as a subquery it is asked for once and an index can be used, whereas
    PostgreSQL asks its clock anew for each row it compares."""
    return select(now() - seconds).scalar_subquery()


def may_start() -> ColumnElement[bool]:
    """The job is not backing off."""
    return or_(JobRow.next_attempt_at.is_(None), JobRow.next_attempt_at <= now())


_OF_STAGE = case((JobRow.queue == Queue.BULK.value, JobRow.stage), else_=JobRow.queue + "." + JobRow.stage)


def in_queue(name: Any) -> ColumnElement[bool]:
    """The job waits in the queue of that name: a kind (`bulk`), or one kind's queue of its stage (`interactive.extract`)."""
    return or_(JobRow.queue == name, name == _OF_STAGE)


def in_paused_queue() -> ColumnElement[bool]:
    """The job waits in a queue that a person has paused."""
    # The few names are read once; of an EXISTS PostgreSQL makes a join of all that is overdue before it takes the first few.
    paused = select(PauseRow.queue)
    return or_(JobRow.queue.in_(paused), _OF_STAGE.in_(paused))


def backoff_s(attempt: int) -> float:
    """How long to wait after a failed attempt, counted from 1."""
    return BACKOFF_S[min(attempt, len(BACKOFF_S)) - 1] * random.uniform(0.8, 1.2)


def traceback_of(error: BaseException) -> str:
    """Class, message and traceback of an error; of a very long one the end."""
    return clean("".join(traceback.format_exception(error)))[-MAX_TRACEBACK:]


def clean(text: str) -> str:
    """Text that both databases can store: PostgreSQL takes no NUL, neither takes lone surrogates."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def face_rows(job_id: str) -> Select[FaceRow]:
    """The faces of a job, by index."""
    return select(FaceRow).where(FaceRow.job_id == job_id).order_by(FaceRow.index)


def face_values(job_id: str, face: Face) -> dict[str, Any]:
    """A face as column values; only a face to be judged keeps its crop."""
    return {
        "job_id": job_id,
        "index": face.index,
        **asdict(face.box),
        **asdict(face.quality),
        "detection": face.detection,
        "crop": face.crop.tobytes() if face.reason is None and face.crop is not None else None,
        "verdict": None if face.reason is None else Verdict.NOT_APPLICABLE.value,
        "reason": None if face.reason is None else face.reason.value,
    }


def judgement_values(job_id: str, judgement: Judgement) -> dict[str, Any]:
    """A judgement as the values of `steps.JUDGE_FACE`."""
    return {
        "this": job_id,
        "at_index": judgement.index,
        "new_score": judgement.score,
        "new_verdict": judgement.verdict.value,
        "new_reason": None if judgement.reason is None else judgement.reason.value,
        "new_evidence": judgement.evidence,
    }


def unfitting(rows: Sequence[FaceRow], judgements: Sequence[Judgement]) -> str:
    """What is wrong with judgements of these faces; empty: nothing."""
    judged = {judgement.index for judgement in judgements}
    if strange := sorted(judged - {row.index for row in rows}):
        return f"face {strange[0]} to judge"
    unjudged = [row.index for row in rows if row.verdict is None and row.index not in judged]
    return f"judgement of face {unjudged[0]}" if unjudged else ""


def outcome(rows: Sequence[FaceRow], judgements: Sequence[Judgement]) -> dict[str, Any]:
    """The image's verdict, score and reason as values of `steps.CLASSIFIED`: its worst face's verdict, the highest score of any."""
    by_index = {judgement.index: judgement for judgement in judgements}
    faces = [by_index.get(row.index) or _as_judged(row) for row in rows]
    verdict = worst([face.verdict for face in faces])
    reason = nearest(face.reason for face in faces).value if verdict is Verdict.NOT_APPLICABLE else None
    score = max((face.score for face in faces if face.score is not None), default=None)
    return {"new_verdict": verdict.value, "new_score": score, "new_reason": reason}


def _as_judged(row: FaceRow) -> Judgement:
    return Judgement(row.index, row.score, Verdict(row.verdict), None if row.reason is None else Reason(row.reason))


def face_of(row: FaceRow, *, crop: bool) -> Face:
    """The face of a row; with `crop`, its crop if it is still kept."""
    pixels = None
    if crop and row.crop is not None:
        side = isqrt(len(row.crop) // 3)
        pixels = np.frombuffer(row.crop, np.uint8).reshape(side, side, 3)
    reason = None if row.reason is None else Reason(row.reason)
    quality = Quality(row.size, row.blur, row.blocks)
    return Face(row.index, Box(row.x, row.y, row.w, row.h), row.detection, quality, reason, pixels)
