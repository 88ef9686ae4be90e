"""The outbox: webhook events, written in the transaction of the change they tell of, one delivery per endpoint.

Payloads are those of Standard Webhooks, `{type, timestamp, data}`, and stay under 20 kB: never an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from pipeline.database import DeliveryRow, EndpointRow, EventRow, FaceRow, JobRow, now
from pipeline.jobs import new_id

TYPES = (
    "job.started",
    "job.done",
    "job.failed",
    "job.refused",
    "training.done",
    "training.failed",
    "model.promoted",
    "model.rolled_back",
)
"""Every type of event there is."""

MAX_VERDICTS = 200
"""So many faces' verdicts are listed in an event; `count` is the true number."""
MAX_SENTENCE = 1000


def announce(session: Session, type: str, subject: str, sequence: int, data: Mapping[str, Any]) -> str:
    """Record an event and, for each enabled endpoint that wants its type, a delivery due at once. Returns the event's id.

    `subject` is the id of what it is about, `sequence` grows by one with each event of a subject (see `next_sequence`).
    Nothing is sent before the caller's transaction commits, and nothing remains of it if that rolls back.
    """
    at = session.execute(select(now())).scalar_one()
    timestamp = datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    event_id = new_id("msg_")
    payload = {"type": type, "timestamp": timestamp, "data": dict(data)}
    event = {"id": event_id, "type": type, "subject": subject, "sequence": sequence, "payload": payload, "created_at": at}
    session.execute(insert(EventRow), event)
    endpoints = session.execute(select(EndpointRow.id, EndpointRow.events).where(EndpointRow.disabled_at.is_(None))).all()
    deliveries = [
        {"id": new_id("dlv_"), "event_id": event_id, "endpoint_id": endpoint, "status": "pending", "next_attempt_at": at, "created_at": at}
        for endpoint, wanted in endpoints
        if not wanted or type in wanted
    ]
    if deliveries:
        session.execute(insert(DeliveryRow), deliveries)
    return event_id


def next_sequence(session: Session, subject: str) -> int:
    """The sequence of the next event about a subject that keeps no count of its own (a model, a training).

    Two transactions that announce about one subject at once collide on its uniqueness, and the second fails: serialise
    them, as a promotion does by changing the alias first.
    """
    newest = session.execute(select(func.max(EventRow.sequence)).where(EventRow.subject == subject)).scalar_one()
    return int(newest or 0) + 1


def announce_job(session: Session, type: str, job: JobRow) -> str:
    """Record an event about a job whose row, with its `sequence` already grown, is up to date. Returns the event's id."""
    return announce(session, type, job.id, job.sequence, job_data(session, job))


def job_data(session: Session, job: JobRow) -> dict[str, Any]:
    """The `data` of an event about a job. `url` is a path: whoever sends it puts the public address before it."""
    verdicts = session.execute(select(FaceRow.verdict).where(FaceRow.job_id == job.id).order_by(FaceRow.index)).scalars().all()
    return {
        "job_id": job.id,
        "source": {"bucket": job.bucket, "key": job.key, "version_id": job.version_id, "etag": job.etag},
        "status": job.status,
        "verdict": job.verdict,
        "score": job.score,
        "reason": None if job.reason is None else job.reason[:MAX_SENTENCE],
        "faces": {"count": len(verdicts), "verdicts": list(verdicts[:MAX_VERDICTS])},
        "model_version": job.model_version,
        "sequence": job.sequence,
        "url": f"/v1/jobs/{job.id}",
    }
