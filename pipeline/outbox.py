"""The outbox: webhook events, written in the transaction of the change they tell of, one delivery per endpoint.

Payloads are those of Standard Webhooks, `{type, timestamp, data}`, and stay under 20 kB: never an image. What the data of
each type holds is in `pipeline.payloads`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, cast

from sqlalchemy import Table, bindparam, func, insert, select
from sqlalchemy.orm import Session

from pipeline.brief import Brief, Statement, brief
from pipeline.database import Database, DeliveryRow, EndpointRow, EventRow, FaceRow, JobRow, now
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
    "model.waiting",
    "model.refused",
    "drift.alarm",
    "endpoint.disabled",
)
"""Every type of event that an endpoint can ask for."""

MAX_VERDICTS = 200
"""So many faces' verdicts are listed in an event; `count` is the true number."""
MAX_SENTENCE = 1000

_NOW = Statement(select(now().label("at")))
_EVENT = Statement(insert(cast(Table, EventRow.__table__)), ["id", "type", "subject", "sequence", "inbox", "payload", "created_at"])
_DELIVERY = Statement(
    insert(cast(Table, DeliveryRow.__table__)),
    ["id", "event_id", "endpoint_id", "status", "attempts", "fence", "next_attempt_at", "created_at"],
)
_ENABLED = Statement(select(EndpointRow.id, EndpointRow.events, EndpointRow.inbox).where(EndpointRow.disabled_at.is_(None)))
_VERDICTS = Statement(select(FaceRow.verdict).where(FaceRow.job_id == bindparam("this")).order_by(FaceRow.index))


def announce(
    on: Brief | Session,
    type: str,
    subject: str,
    sequence: int,
    data: Mapping[str, Any],
    *,
    inbox: str | None = None,
    only: str | None = None,
    at: float | None = None,
) -> str:
    """Record an event and, for each enabled endpoint that wants it, a delivery due at once. Returns the event's id.

    `subject` is the id of what it is about, `sequence` grows by one with each event of a subject (see `next_sequence`).
    `inbox`: whose event it is; None: the whole product's, which endpoints of one inbox do not hear. `only`: the id of the
    one endpoint that gets it, whatever it wants. `at`: when it happened by the database's clock; None: now.
    Nothing is sent before the caller's transaction commits, and nothing remains of it if that rolls back.
    """
    if at is None:
        at = float(_NOW.run(on, {})[0].at)
    timestamp = datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    event_id = new_id("msg_")
    payload = {"type": type, "timestamp": timestamp, "data": dict(data)}
    event = {"id": event_id, "type": type, "subject": subject, "sequence": sequence, "inbox": inbox, "payload": payload, "created_at": at}
    _EVENT.run(on, event)
    if only is not None:
        wanting = [only]
    else:
        wanting = [endpoint for endpoint, events, of_inbox in _ENABLED.run(on, {}) if wants(type, inbox, events, of_inbox)]
    _DELIVERY.many(on, [delivery(event_id, endpoint, at) for endpoint in wanting])
    return event_id


def heard(db: Database) -> bool:
    """Whether there is anybody to hear of events at all."""
    with brief(db, write=False) as on:
        return bool(_ENABLED.run(on, {}))


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


def announce_job(
    on: Brief | Session, type: str, job: JobRow, verdicts: Sequence[str | None] | None = None, *, at: float | None = None
) -> str:
    """Record an event about a job whose row, with its `sequence` already grown, is up to date. Returns the event's id.

    `verdicts`: those of its faces by index; None: they are looked up. `at`: as of `announce`.
    """
    return announce(on, type, job.id, job.sequence, job_data(on, job, verdicts), inbox=job.inbox, at=at)


def job_data(on: Brief | Session, job: JobRow, verdicts: Sequence[str | None] | None = None) -> dict[str, Any]:
    """The `data` of an event about a job. `url` is a path: whoever sends it puts the public address before it."""
    if verdicts is None:
        verdicts = [row.verdict for row in _VERDICTS.run(on, {"this": job.id})]
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
