"""Signed webhooks, sent until somebody takes them.

The ledger writes an event and its deliveries in the transaction of the change they tell of; here they are claimed
(compare-and-set, with a lease), sent, and the outcome written down. A dispatcher that dies between sending and writing
leaves a lease that expires: the event goes out again, with the same id. One receiver never holds up another: each has at
most four requests in the air at once, or one while it fails, and a hanging one is left to itself.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from threading import BoundedSemaphore
from typing import Any

from sqlalchemy import ColumnElement, and_, func, insert, or_, select, update
from sqlalchemy.orm import Session

from pipeline import faults
from pipeline.database import Database, DeliveryAttemptRow, DeliveryRow, EndpointRow, EventRow, now
from pipeline.settings import Settings
from webhooks.secretbox import SecretError, unseal
from webhooks.sending import DEADLINE_S, Answer, Receiver, body_of, send

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
LEASE_S = DEADLINE_S + 25.0
PER_ENDPOINT = 4
THREADS = 16


@dataclass(frozen=True)
class Claim:
    """The right to make one attempt. `attempt` counts from 1."""

    delivery_id: str
    endpoint_id: str
    fence: int
    attempt: int


def deliver_due(db: Database, settings: Settings, limit: int = 100, *, patience_s: float = 2.0) -> int:
    """Attempt up to `limit` deliveries that are due, several at a time. Returns how many attempts were begun.

    Waits for their answers, but no longer than `patience_s`: slow receivers are seen to in the background, and their
    leases keep everybody else's hands off meanwhile. Call it about once a second, from one process or from many.
    """
    return _dispatcher(os.getpid()).run(db, settings, limit, patience_s)


def deliver_one(db: Database, settings: Settings, delivery_id: str) -> Answer | None:
    """Attempt one pending delivery now, due or not, and wait for the answer. None: somebody else is at it, or it is over."""
    with db.write() as session:
        seen = session.execute(select(DeliveryRow.id, DeliveryRow.fence).where(DeliveryRow.id == delivery_id, _free())).all()
        claims = _take(session, [(row.id, row.fence) for row in seen])
    return _attempt(db, settings, claims[0]) if claims else None


def drain(patience_s: float) -> bool:
    """Wait until no request of this process is in the air any more: before it ends. False: some still were, and will be repeated."""
    return _dispatcher(os.getpid()).drain(patience_s)


class _Dispatcher:
    """The sending threads of one process."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="webhooks")
        self._slots = BoundedSemaphore(THREADS)

    def run(self, db: Database, settings: Settings, limit: int, patience_s: float) -> int:
        until = time.monotonic() + patience_s
        begun, flying = 0, set[Future[Any]]()
        while True:
            claims = self._claim(db, limit - begun)
            begun += len(claims)
            flying |= {self._pool.submit(self._fly, db, settings, claim) for claim in claims}
            if not flying:
                return begun
            landed, flying = wait(flying, timeout=max(0.0, until - time.monotonic()), return_when=FIRST_COMPLETED)
            if not landed:
                return begun

    def drain(self, patience_s: float) -> bool:
        until = time.monotonic() + patience_s
        taken = 0
        while taken < THREADS and self._slots.acquire(timeout=max(0.0, until - time.monotonic())):
            taken += 1
        for _ in range(taken):
            self._slots.release()
        return taken == THREADS

    def _claim(self, db: Database, most: int) -> list[Claim]:
        slots = 0
        while slots < most and self._slots.acquire(blocking=False):
            slots += 1
        claims: list[Claim] = []
        try:
            claims = claim_due(db, slots) if slots else []
        finally:
            for _ in range(slots - len(claims)):
                self._slots.release()
        return claims

    def _fly(self, db: Database, settings: Settings, claim: Claim) -> None:
        try:
            _attempt(db, settings, claim)
        except Exception:  # the lease expires, and somebody tries again
            log.exception("delivery %s: the attempt could not be made or written down", claim.delivery_id)
        finally:
            self._slots.release()


@cache
def _dispatcher(pid: int) -> _Dispatcher:
    # By process id: threads do not survive a fork.
    return _Dispatcher()


# -- claiming


def _free() -> ColumnElement[bool]:
    return and_(DeliveryRow.status == "pending", or_(DeliveryRow.lease_until.is_(None), DeliveryRow.lease_until <= now()))


def claim_due(db: Database, limit: int) -> list[Claim]:
    """Take up to `limit` deliveries that are due: only so many of each endpoint, first those of which fewest are in the air."""
    waiting: list[tuple[int, float, str, int]] = []
    with db.read() as session:  # nobody needs to be kept from writing to see that there is nothing
        flying = _flying(session)
        enabled = session.execute(select(EndpointRow.id, EndpointRow.failing_since).where(EndpointRow.disabled_at.is_(None))).all()
        for endpoint_id, failing_since in enabled:
            begun = flying.get(endpoint_id, 0)
            room = (PER_ENDPOINT if failing_since is None else 1) - begun
            if room > 0:
                due = and_(DeliveryRow.endpoint_id == endpoint_id, _free(), DeliveryRow.next_attempt_at <= now())
                query = select(DeliveryRow.next_attempt_at, DeliveryRow.id, DeliveryRow.fence).where(due)
                query = query.order_by(DeliveryRow.next_attempt_at).limit(min(room, limit))
                found = enumerate(session.execute(query))
                waiting += [(begun + place, at or 0.0, delivery_id, fence) for place, (at, delivery_id, fence) in found]
    if not waiting:
        return []
    with db.write() as session:
        return _take(session, [(delivery_id, fence) for _, _, delivery_id, fence in sorted(waiting)[:limit]])


def _flying(session: Session) -> dict[str, int]:
    """How many requests are in the air, by endpoint."""
    leased = and_(DeliveryRow.status == "pending", DeliveryRow.lease_until > now())
    found = session.execute(select(DeliveryRow.endpoint_id, func.count()).where(leased).group_by(DeliveryRow.endpoint_id))
    return {endpoint_id: count for endpoint_id, count in found}  # noqa: C416


def _take(session: Session, chosen: Iterable[tuple[str, int]]) -> list[Claim]:
    """The compare-and-set: those of the deliveries, given with the fence as seen, that nobody else took meanwhile."""
    claims = []
    for delivery_id, fence in chosen:
        taken = session.execute(
            update(DeliveryRow)
            .where(DeliveryRow.id == delivery_id, DeliveryRow.fence == fence, _free())
            .values(fence=fence + 1, attempts=DeliveryRow.attempts + 1, lease_until=now() + LEASE_S)
            .returning(DeliveryRow.endpoint_id, DeliveryRow.attempts)
        ).first()
        if taken is not None:
            claims.append(Claim(delivery_id, taken.endpoint_id, fence + 1, taken.attempts))
    return claims


# -- one attempt


def _attempt(db: Database, settings: Settings, claim: Claim) -> Answer:
    with db.read() as session:
        found = session.execute(
            select(EventRow.id, EventRow.payload, EndpointRow, now())
            .join(DeliveryRow, DeliveryRow.event_id == EventRow.id)
            .join(EndpointRow, EndpointRow.id == DeliveryRow.endpoint_id)
            .where(DeliveryRow.id == claim.delivery_id)
        ).one_or_none()
    if found is None:
        return Answer(None, "The endpoint has been removed meanwhile.", 0.0)
    event_id, payload, endpoint, at = found
    if endpoint.url.startswith("http://") and not settings.webhook_allow_http:
        answer = Answer(None, "The endpoint's URL is plain HTTP, which UNMASK_WEBHOOK_ALLOW_HTTP does not allow.", 0.0)
    else:
        try:
            receiver = Receiver(endpoint.url, _secrets(settings, endpoint, at), settings.webhook_allow_private)
            faults.point("deliver", endpoint.url)
            answer = send(receiver, event_id, body_of(payload, settings.url))
            faults.point("delivered", endpoint.url)
        except SecretError as error:
            answer = Answer(None, str(error), 0.0)
    record(db, claim, answer)
    return answer


def _secrets(settings: Settings, endpoint: EndpointRow, at: float) -> list[str]:
    secrets = [unseal(settings, endpoint.secret)]
    if endpoint.previous_secret and endpoint.previous_until and endpoint.previous_until > at:
        secrets.append(unseal(settings, endpoint.previous_secret))
    return secrets


def delay_after(attempt: int, answer: Answer, chance: Callable[[], float] = random.random) -> float | None:
    """Seconds to wait after a failed attempt (counted from 1), jitter included; None: that was the last.

    A Retry-After longer than the schedule counts, up to a day.
    """
    if attempt >= len(SCHEDULE_S):
        return None
    delay = SCHEDULE_S[attempt] * (1 + JITTER * (2 * chance() - 1))
    return max(delay, min(answer.retry_after_s or 0.0, LONGEST_WAIT_S))


def record(db: Database, claim: Claim, answer: Answer) -> bool:
    """Write down what came of an attempt, and what is to happen next. False: the claim was no longer ours, and only the
    attempt is noted."""
    with db.write() as session:
        at = session.execute(select(now())).scalar_one()
        if session.get(DeliveryRow, claim.delivery_id) is None:  # its endpoint has been removed meanwhile
            return False
        session.execute(
            insert(DeliveryAttemptRow).values(
                delivery_id=claim.delivery_id,
                at=at - answer.duration_ms / 1000,
                status_code=answer.status_code,
                error=answer.error,
                duration_ms=answer.duration_ms,
                response=answer.response.replace("\0", "") if answer.response else None,
            )
        )
        delay = None if answer.delivered or answer.status_code == 410 else delay_after(claim.attempt, answer)
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
        session.execute(update(EndpointRow).where(this, EndpointRow.failing_since.is_not(None)).values(failing_since=None))
        return
    session.execute(update(EndpointRow).where(this, EndpointRow.failing_since.is_(None)).values(failing_since=at))
    if answer.status_code == 410:
        _disable(session, endpoint_id, at, "The receiver answered 410 Gone: it wants no more webhooks.")
        return
    since = session.execute(select(EndpointRow.failing_since).where(this)).scalar_one()
    if since is not None and at - since >= GIVE_UP_ON_ENDPOINT_S:
        _disable(session, endpoint_id, at, f"Nothing but failures for five days; the last one: {answer.error}")
        return
    if answer.status_code in THROTTLED or answer.retry_after_s:
        until = at + min(answer.retry_after_s or min(delay or THROTTLE_S, THROTTLE_S), LONGEST_WAIT_S)
        waiting = and_(DeliveryRow.endpoint_id == endpoint_id, DeliveryRow.status == "pending", DeliveryRow.lease_until.is_(None))
        session.execute(update(DeliveryRow).where(waiting, DeliveryRow.next_attempt_at < until).values(next_attempt_at=until))


def _disable(session: Session, endpoint_id: str, at: float, reason: str) -> None:
    enabled = and_(EndpointRow.id == endpoint_id, EndpointRow.disabled_at.is_(None))
    if session.execute(update(EndpointRow).where(enabled).values(disabled_at=at, disabled_reason=reason).returning(EndpointRow.id)).first():
        log.warning("webhook endpoint %s is disabled: %s", endpoint_id, reason)


def disabled(db: Database) -> Sequence[EndpointRow]:
    """Endpoints that were disabled because they failed or were gone, for the notice on every page of the dashboard."""
    with db.read() as session:
        return session.scalars(
            select(EndpointRow).where(EndpointRow.disabled_at.is_not(None), EndpointRow.failing_since.is_not(None))
        ).all()
