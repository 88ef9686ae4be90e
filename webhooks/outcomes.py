"""What comes of an attempt: written down, with what is to happen next to the delivery and to the endpoint."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import and_, func, insert, select, update
from sqlalchemy.orm import Session
from urllib3.util import parse_url

from pipeline import audit, outbox
from pipeline.changes import clean
from pipeline.database import Database, DeliveryAttemptRow, DeliveryRow, EndpointRow, now
from webhooks.claiming import Claim
from webhooks.sending import Answer

log = logging.getLogger(__name__)

SCHEDULE_S = (0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Wait before each attempt, the first being at once. After the last, the delivery has failed."""
JITTER = 0.2
GIVE_UP_ON_ENDPOINT_S = 5 * 86_400.0
"""So long nothing but failures, and the endpoint is disabled."""
THROTTLED = (429, 502, 504)
THROTTLE_S = 60.0
"""How long everything else for the endpoint waits, too, after such an answer without Retry-After."""
LONGEST_WAIT_S = 86_400.0
GONE = 410


def delay_after(attempt: int, answer: Answer, chance: Callable[[], float] = random.random) -> float | None:
    """Seconds to wait after a failed attempt (counted from 1), jitter included; None: that was the last.

    A Retry-After longer than the schedule counts, up to a day.
    """
    if attempt >= len(SCHEDULE_S):
        return None
    delay = SCHEDULE_S[attempt] * (1 + JITTER * (2 * chance() - 1))
    return max(delay, min(answer.retry_after_s or 0.0, LONGEST_WAIT_S))


def record(db: Database, claim: Claim, answer: Answer, *, again: bool = False) -> bool:
    """Write down what came of an attempt, and what is to happen next. False: the claim was no longer ours, and only the
    attempt is noted. `again`: it may have been written down already, and only the answer to that have been lost."""
    with db.write() as session:
        at = session.execute(select(now())).scalar_one()
        row = session.get(DeliveryRow, claim.delivery_id)
        if row is None:  # its endpoint has been removed meanwhile
            return False
        if again and row.fence == claim.fence and row.lease_until is None:
            return True
        session.execute(
            insert(DeliveryAttemptRow).values(
                delivery_id=claim.delivery_id,
                at=at - answer.duration_ms / 1000,
                status_code=answer.status_code,
                error=None if answer.error is None else clean(answer.error),
                duration_ms=answer.duration_ms,
                request_headers=None if answer.request_headers is None else dict(answer.request_headers),
                response_headers=None if answer.response_headers is None else dict(answer.response_headers),
                response=clean(answer.response) if answer.response else None,
            )
        )
        delay = None if answer.delivered or answer.status_code == GONE else delay_after(claim.attempt, answer)
        values: dict[str, Any] = {"lease_until": None}
        if answer.delivered:
            values |= {"status": "delivered", "delivered_at": at, "next_attempt_at": None}
        elif delay is None:
            values |= {"status": "failed", "next_attempt_at": None}
        else:
            values |= {"next_attempt_at": at + delay}
        ours = update(DeliveryRow).where(
            DeliveryRow.id == claim.delivery_id, DeliveryRow.fence == claim.fence, DeliveryRow.status == "pending"
        )
        held = session.execute(ours.values(**values).returning(DeliveryRow.id)).first() is not None
        if held:
            _judge_endpoint(session, claim.endpoint_id, answer, at, delay)
        return held


def _judge_endpoint(session: Session, endpoint_id: str, answer: Answer, at: float, delay: float | None) -> None:
    """What an answer says about the endpoint itself: it works, it fails, it is gone, or it wants to be left alone a while."""
    this = EndpointRow.id == endpoint_id
    if answer.delivered:
        failing = EndpointRow.failing_since.is_not(None) | EndpointRow.throttled_until.is_not(None)
        session.execute(update(EndpointRow).where(this, failing).values(failing_since=None, throttled_until=None))
        return
    session.execute(update(EndpointRow).where(this, EndpointRow.failing_since.is_(None)).values(failing_since=at))
    if answer.status_code == GONE:
        _disable(session, endpoint_id, at, "The receiver answered 410 Gone: it wants no more webhooks.")
        return
    since = session.execute(select(EndpointRow.failing_since).where(this)).scalar_one()
    if since is not None and at - since >= GIVE_UP_ON_ENDPOINT_S:
        _disable(session, endpoint_id, at, f"Nothing but failures for five days; the last one: {answer.error}")
        return
    if answer.status_code in THROTTLED or answer.retry_after_s:
        asked = min(delay or THROTTLE_S, THROTTLE_S) if answer.retry_after_s is None else answer.retry_after_s
        session.execute(update(EndpointRow).where(this).values(throttled_until=at + min(asked, LONGEST_WAIT_S)))


def _disable(session: Session, endpoint_id: str, at: float, reason: str) -> None:
    enabled = and_(EndpointRow.id == endpoint_id, EndpointRow.disabled_at.is_(None))
    changed = update(EndpointRow).where(enabled).values(disabled_at=at, disabled_reason=clean(reason))
    row = session.execute(changed.returning(EndpointRow.url, EndpointRow.inbox, EndpointRow.failing_since)).first()
    if row is None:
        return
    log.warning("webhook endpoint %s is disabled: %s", endpoint_id, reason)
    audit.note(session, "system", "endpoint.disable", endpoint_id, reason=reason)
    waiting = select(func.count()).where(DeliveryRow.endpoint_id == endpoint_id, DeliveryRow.status == "pending")
    sequence = outbox.next_sequence(session, endpoint_id)
    data = {
        "endpoint_id": endpoint_id,
        "host": parse_url(row.url).host or "",
        "reason": clean(reason),
        "failing_since": None if row.failing_since is None else _moment(row.failing_since),
        "pending": session.execute(waiting.select_from(DeliveryRow)).scalar_one(),
        "sequence": sequence,
        "url": f"/v1/endpoints/{endpoint_id}",
    }
    outbox.announce(session, "endpoint.disabled", endpoint_id, sequence, data, inbox=row.inbox)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
