"""Rows as the API shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import overload

from sqlalchemy import select
from sqlalchemy.orm import defer

from pipeline import registry, results
from pipeline.card import ModelError
from pipeline.database import Database, EndpointRow, FaceRow, JobRow
from webhooks.api import schemas
from webhooks.context import Context
from webhooks.deliveries import Delivery
from webhooks.sending import body_of

AS_THEY_ARE = ("id", "status", "stage", "queue", "origin", "attempts", "verdict", "score", "reason", "timings_ms")


@overload
def moment(seconds: float) -> str: ...
@overload
def moment(seconds: float | None) -> str | None: ...
def moment(seconds: float | None) -> str | None:
    """A time as RFC 3339, UTC, to the millisecond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def face_rows(db: Database, job_id: str) -> Sequence[FaceRow]:
    """The faces of a job with what was said of them, by index; without their crops."""
    with db.read() as session:
        return session.scalars(select(FaceRow).where(FaceRow.job_id == job_id).order_by(FaceRow.index).options(defer(FaceRow.crop))).all()


def limits_of(db: Database, row: JobRow) -> list[str]:
    """What the card of the job's model says its scores do not say."""
    if row.model_name is None or row.model_version is None:
        return []
    try:
        return registry.card(db, row.model_name, row.model_version).limits
    except ModelError:  # the version has been withdrawn since
        return []


def face(row: FaceRow) -> schemas.Face:
    """A face and its verdict."""
    return schemas.Face.model_validate(results.face_document(row))


def job(context: Context, row: JobRow, *, whole: bool = False) -> schemas.Job:
    """A job; `whole`: with its faces and the limits of its model, which cost a query each."""
    url = f"{context.settings.url}/v1/jobs/{row.id}"
    model = None
    if row.model_name is not None:
        limits = limits_of(context.database, row) if whole else []
        model = {"name": row.model_name, "version": row.model_version, "sha256": row.model_sha256, "limits": limits}
    source = {name: getattr(row, name) for name in ("bucket", "key", "version_id", "etag", "size", "sha256", "width", "height")}
    plain = {name: getattr(row, name) for name in AS_THEY_ARE}
    return schemas.Job.model_validate(
        plain
        | {
            "source": source,
            "model": model,
            "created_at": moment(row.created_at),
            "started_at": moment(row.started_at),
            "finished_at": moment(row.finished_at),
            "faces": [face(one) for one in face_rows(context.database, row.id)] if whole else None,
            "url": url,
            "annotated": f"{url}/annotated.png" if row.annotated_key else None,
            "result": f"{url}/result.json" if row.result_key else None,
        }
    )


def endpoint(row: EndpointRow) -> schemas.Endpoint:
    """A receiver, without its secrets."""
    return schemas.Endpoint(
        id=row.id,
        url=row.url,
        description=row.description,
        events=list(row.events),
        inbox=row.inbox,
        created_at=moment(row.created_at),
        failing_since=moment(row.failing_since),
        throttled_until=moment(row.throttled_until),
        disabled_at=moment(row.disabled_at),
        disabled_reason=row.disabled_reason,
    )


def delivery(found: Delivery, *, public_url: str | None = None) -> schemas.Delivery:
    """A delivery and its attempts; with `public_url`, the event as well."""
    row = found.row
    return schemas.Delivery.model_validate(
        {
            "id": row.id,
            "event_id": row.event_id,
            "event_type": found.event.type,
            "endpoint_id": row.endpoint_id,
            "endpoint_url": found.url,
            "status": row.status,
            "created_at": moment(row.created_at),
            "next_attempt_at": moment(row.next_attempt_at),
            "delivered_at": moment(row.delivered_at),
            "attempts": [
                {
                    "at": moment(one.at),
                    "status_code": one.status_code,
                    "error": one.error,
                    "duration_ms": one.duration_ms,
                    "request_headers": one.request_headers,
                    "response_headers": one.response_headers,
                    "response": one.response,
                }
                for one in found.tries
            ],
            "event": None if public_url is None else json.loads(body_of(found.event.payload, public_url)),
        }
    )


def version(found: registry.Version) -> schemas.ModelVersion:
    """A published model version."""
    return schemas.ModelVersion(
        name=found.card.name,
        version=found.card.version,
        aliases=list(found.aliases),
        published_at=moment(found.created_at),
        card=found.card.model_dump(mode="json"),
    )
