"""Signed webhooks, sent until somebody takes them.

The ledger writes an event and its deliveries in the transaction of the change they tell of; here they are claimed
(compare-and-set, with a lease), sent, and the outcome written down. A dispatcher that dies between sending and writing
leaves a lease that expires: the event goes out again, with the same id. A database that is away for a moment is waited for,
and is nothing that a receiver is blamed for. One receiver never holds up another: each has at
most four requests in the air at once, or one while it fails; half the threads are kept for those that have none there; and
one that hangs is left to itself.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from threading import BoundedSemaphore, Event, Lock
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from pipeline import faults
from pipeline.database import AWAY, Database, DeliveryRow, EndpointRow, EventRow, insistently, now
from pipeline.settings import Settings
from webhooks.claiming import AWAY_S, Claim, claim_due, free, take
from webhooks.outcomes import SCHEDULE_S, record
from webhooks.secretbox import SecretError, opens, unseal
from webhooks.sending import DEADLINE_S, Answer, Receiver, body_of, send

log = logging.getLogger(__name__)

THREADS = 32
LOOK_S = 0.25
"""How often new deliveries are looked for while others are in the air, if none of those lands."""
LANDING_S = DEADLINE_S + AWAY_S
"""So long a process that stops waits for what it has in the air."""
MOST_CLAIMS = 2 * len(SCHEDULE_S)
"""A delivery that was begun so often was lost, or ended its process, about every other time: it is given up."""


def deliver_due(db: Database, settings: Settings, limit: int = 1000, *, patience_s: float = 2.0) -> int:
    """Attempt up to `limit` deliveries that are due, many at a time. Returns how many attempts were begun.

    Waits for their answers, but no longer than `patience_s`: slow receivers are seen to in the background, and their
    leases keep everybody else's hands off meanwhile. Call it about once a second, from one process or from many. Of the
    threads of one process only one waits; the others send what is due and return.
    """
    return _dispatcher(os.getpid()).run(db, settings, limit, patience_s)


def deliver_one(db: Database, settings: Settings, delivery_id: str) -> Answer | None:
    """Attempt one pending delivery now, due or not, and wait for the answer. None: somebody else is at it, or it is over."""
    with db.read() as session:
        seen = session.execute(select(DeliveryRow.id, DeliveryRow.fence).where(DeliveryRow.id == delivery_id, free())).all()
    claims = take(db, [(row.id, row.fence) for row in seen]) if seen else []
    return _attempt(db, settings, claims[0]) if claims else None


def drain(patience_s: float = LANDING_S) -> bool:
    """Wait until no request of this process is in the air any more: before it ends. False: some still were, and will be repeated."""
    return _dispatcher(os.getpid()).drain(patience_s)


class _Dispatcher:
    """The sending threads of one process."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="webhooks")
        self._slots = BoundedSemaphore(THREADS)
        self._flying: dict[Future[None], float] = {}
        """Attempts that are in the air, and when they began."""
        self._lock = Lock()
        self._waiting = Lock()
        self._landed = Event()
        self._more = False
        """More was due than could be sent when somebody last looked."""

    def run(self, db: Database, settings: Settings, limit: int, patience_s: float) -> int:
        until = time.monotonic() + patience_s
        begun = self._launch(db, settings, limit)
        if not self._waiting.acquire(blocking=False):
            return begun
        try:
            while self._youngest() < patience_s and (left := until - time.monotonic()) > 0:
                landed = self._landed.wait(min(LOOK_S, left))
                self._landed.clear()
                if self._more or not landed:
                    begun += self._launch(db, settings, limit - begun)
        finally:
            self._waiting.release()
        return begun

    def drain(self, patience_s: float) -> bool:
        until = time.monotonic() + patience_s
        taken = 0
        while taken < THREADS and self._slots.acquire(timeout=max(0.0, until - time.monotonic())):
            taken += 1
        for _ in range(taken):
            self._slots.release()
        return taken == THREADS

    def _youngest(self) -> float:
        """Seconds since the last attempt began of those in the air; infinite if there is none."""
        with self._lock:
            return time.monotonic() - max(self._flying.values(), default=-math.inf)

    def _launch(self, db: Database, settings: Settings, most: int) -> int:
        """Send what is due, as far as there are threads for it; returns how many."""
        slots = 0
        while slots < most and self._slots.acquire(blocking=False):
            slots += 1
        claims: list[Claim] = []
        more = True
        try:
            if slots:
                claims, more = claim_due(db, slots, min(slots, THREADS // 2))
        finally:
            self._more = more
            for _ in range(slots - len(claims)):
                self._slots.release()
        for claim in claims:
            flight = self._pool.submit(self._fly, db, settings, claim)
            with self._lock:
                self._flying[flight] = time.monotonic()
            flight.add_done_callback(self._land)
        return len(claims)

    def _fly(self, db: Database, settings: Settings, claim: Claim) -> None:
        try:
            _attempt(db, settings, claim)
        except AWAY as error:  # no fault of the receiver's; the lease expires, and somebody tries again
            log.warning("delivery %s: the database is away (%s)", claim.delivery_id, type(error).__name__)
        except Exception as error:
            log.exception("delivery %s: the attempt could not be made or written down", claim.delivery_id)
            with suppress(SQLAlchemyError):
                record(db, claim, Answer(None, f"The attempt could not be made ({type(error).__name__}); the log says why.", 0.0))
        finally:
            self._slots.release()

    def _land(self, flight: Future[None]) -> None:
        with self._lock:
            del self._flying[flight]
        self._landed.set()


@cache
def _dispatcher(pid: int) -> _Dispatcher:
    # By process id: threads do not survive a fork.
    return _Dispatcher()


def _attempt(db: Database, settings: Settings, claim: Claim) -> Answer:
    if claim.attempt > MOST_CLAIMS:
        answer = Answer(None, f"It is given up: of {claim.attempt - 1} attempts too many ended without anything written down.", 0.0)
    elif (found := insistently(lambda _: _load(db, claim), AWAY_S)) is None:
        return Answer(None, "The endpoint has been removed meanwhile.", 0.0)
    else:
        answer = _sent(settings, *found)
    insistently(lambda again: record(db, claim, answer, again=again), AWAY_S)
    return answer


def _sent(settings: Settings, event_id: str, payload: dict[str, Any], endpoint: EndpointRow, at: float) -> Answer:
    if endpoint.url.startswith("http://") and not settings.webhook_allow_http:
        return Answer(None, "The endpoint's URL is plain HTTP, which UNMASK_WEBHOOK_ALLOW_HTTP does not allow.", 0.0)
    try:
        receiver = Receiver(endpoint.url, _secrets(settings, endpoint, at), settings.webhook_allow_private)
    except SecretError as error:
        return Answer(None, str(error), 0.0)
    faults.point("deliver", endpoint.url)
    answer = send(receiver, event_id, body_of(payload, settings.url))
    faults.point("delivered", endpoint.url)
    return answer


def _load(db: Database, claim: Claim) -> Any:
    with db.read() as session:
        return session.execute(
            select(EventRow.id, EventRow.payload, EndpointRow, now())
            .join(DeliveryRow, DeliveryRow.event_id == EventRow.id)
            .join(EndpointRow, EndpointRow.id == DeliveryRow.endpoint_id)
            .where(DeliveryRow.id == claim.delivery_id)
        ).one_or_none()


def _secrets(settings: Settings, endpoint: EndpointRow, at: float) -> list[str]:
    secrets = [unseal(settings, endpoint.secret)]
    previous = endpoint.previous_secret
    if previous and endpoint.previous_until and endpoint.previous_until > at and opens(settings, previous):
        secrets.append(unseal(settings, previous))
    return secrets


def disabled(db: Database, inboxes: Collection[str] = ()) -> Sequence[EndpointRow]:
    """Endpoints that were disabled because they failed or were gone, for the notice on every page of the dashboard.

    `inboxes`: only endpoints of these; empty: all.
    """
    query = select(EndpointRow).where(EndpointRow.disabled_at.is_not(None), EndpointRow.failing_since.is_not(None))
    if inboxes:
        query = query.where(EndpointRow.inbox.in_(inboxes))
    with db.read() as session:
        return session.scalars(query).all()
