"""The outbox: webhook events, written in the transaction of the change they tell of, one delivery per endpoint.

Payloads are those of Standard Webhooks, `{type, timestamp, data}`, and stay under 20 kB: never an image. What the data of
each type holds is in `pipeline.payloads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, cast

from sqlalchemy import Table, func, insert, select
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
    "endpoint.disabled",
)
"""Every type of event that an endpoint can ask for."""

MAX_VERDICTS = 200
"""So many faces' verdicts are listed in an event; `count` is the true number."""
MAX_SENTENCE = 1000

# Built once: most of what a small statement costs is building it.
_NOW = select(now())
_EVENT = insert(cast(Table, EventRow.__table__))
_DELIVERY = insert(cast(Table, DeliveryRow.__table__))
_ENABLED = select(EndpointRow.id, EndpointRow.events, EndpointRow.inbox).where(EndpointRow.disabled_at.is_(None))


def announce(
    session: Session, type: str, subject: str, sequence: int, data: Mapping[str, Any], *, inbox: str | None = None, only: str | None = None
) -> str:
    """Record an event and, for each enabled endpoint that wants it, a delivery due at once. Returns the event's id.

    `subject` is the id of what it is about, `sequence` grows by one with each event of a subject (see `next_sequence`).
    `inbox`: whose event it is; None: the whole product's, which endpoints of one inbox do not hear. `only`: the id of the
    one endpoint that gets it, whatever it wants.
    Nothing is sent before the caller's transaction commits, and nothing remains of it if that rolls back.
    """
    connection = session.connection()
    at = connection.execute(_NOW).scalar_one()
    timestamp = datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    event_id = new_id("msg_")
    payload = {"type": type, "timestamp": timestamp, "data": dict(data)}
    event = {"id": event_id, "type": type, "subject": subject, "sequence": sequence, "inbox": inbox, "payload": payload, "created_at": at}
    connection.execute(_EVENT, event)
    if only is not None:
        wanting = [only]
    else:
        wanting = [endpoint for endpoint, events, of_inbox in connection.execute(_ENABLED) if wants(type, inbox, events, of_inbox)]
    if wanting:
        connection.execute(_DELIVERY, [delivery(event_id, endpoint, at) for endpoint in wanting])
    return event_id


def wants(type: str, inbox: str | None, events: list[str], of_inbox: str | None) -> bool:
    """Whether an endpoint that asked for `events` (empty: all) of the inbox `of_inbox` (None: all) is to hear of an event."""
    return (not events or type in events) and of_inbox in (None, inbox)


def delivery(event_id: str, endpoint_id: str, at: float) -> dict[str, Any]:
    """Column values of a delivery that is due at `at`, seconds since the epoch."""
    waits = {"status": "pending", "attempts": 0, "fence": 0, "next_attempt_at": at, "created_at": at}
    return {"id": new_id("dlv_"), "event_id": event_id, "endpoint_id": endpoint_id, **waits}


def next_sequence(session: Session, subject: str) -> int:
    """The sequence of the next event about a subject that keeps no count of its own (a model, a training).

    Two transactions that announce about one subject at once collide on its uniqueness, and the second fails: serialise
    them, as a promotion does by changing the alias first.
    """
    newest = session.execute(select(func.max(EventRow.sequence)).where(EventRow.subject == subject)).scalar_one()
    return int(newest or 0) + 1


def announce_job(session: Session, type: str, job: JobRow) -> str:
    """Record an event about a job whose row, with its `sequence` already grown, is up to date. Returns the event's id."""
    return announce(session, type, job.id, job.sequence, job_data(session, job), inbox=job.inbox)


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
