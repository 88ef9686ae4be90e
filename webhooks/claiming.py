"""Which deliveries may be sent now, and the right to send one: a compare-and-set with a lease, counted before the attempt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from pipeline.changes import ago
from pipeline.database import Database, DeliveryRow, EndpointRow, insistently, now
from webhooks.sending import DEADLINE_S

AWAY_S = 8.0
"""So long each of claiming, reading and writing down insists where the database is away for a moment: a server that starts again."""
LEASE_S = DEADLINE_S + 2 * AWAY_S + 9.0
PER_ENDPOINT = 4
"""At most so many requests to one endpoint are in the air at once; one while it fails."""


@dataclass(frozen=True)
class Claim:
    """The right to make one attempt. `attempt` counts from 1."""

    delivery_id: str
    endpoint_id: str
    fence: int
    attempt: int


def claim_due(db: Database, limit: int, reserve: int = 0) -> tuple[list[Claim], bool]:
    """Take up to `limit` deliveries that are due: only so many of each endpoint, first those of which fewest are in the air.

    The last `reserve` of the `limit` are kept for endpoints that have nothing in the air: however many of those that hang
    have had their share, the others still find room. Returns as well whether more may be due, for which there was no room.
    """
    waiting: list[tuple[int, float, str, int]] = []
    more = False
    with db.read() as session:  # nobody needs to be kept from writing to see that there is nothing
        ready = session.execute(select(EndpointRow.id, EndpointRow.failing_since).where(_open(), _has_something_due())).all()
        flying = _flying(session) if ready else {}
        for endpoint_id, failing_since in ready:
            begun = flying.get(endpoint_id, 0)
            room = (PER_ENDPOINT if failing_since is None else 1) - begun
            if room > 0:
                query = select(DeliveryRow.next_attempt_at, DeliveryRow.id, DeliveryRow.fence)
                query = query.where(DeliveryRow.endpoint_id == endpoint_id, *_due()).order_by(DeliveryRow.next_attempt_at)
                found = session.execute(query.limit(min(room, limit))).all()
                waiting += [(begun + place, at or 0.0, delivery_id, fence) for place, (at, delivery_id, fence) in enumerate(found)]
                more |= len(found) == room
            else:
                more = True
    waiting.sort()
    firsts = [one for one in waiting if one[0] == 0][:limit]
    others = [one for one in waiting if one[0] > 0][: max(0, limit - reserve - len(firsts))]
    more |= len(firsts) + len(others) < len(waiting)
    if not firsts and not others:
        return [], more
    return take(db, [(delivery_id, fence) for _, _, delivery_id, fence in firsts + others]), more


def free() -> ColumnElement[bool]:
    """The delivery is pending, and nobody is at it."""
    return and_(DeliveryRow.status == "pending", or_(DeliveryRow.lease_until.is_(None), DeliveryRow.lease_until <= ago(0.0)))


def _due() -> tuple[ColumnElement[bool], ...]:
    return free(), DeliveryRow.next_attempt_at <= ago(0.0)


def _open() -> ColumnElement[bool]:
    patient = or_(EndpointRow.throttled_until.is_(None), EndpointRow.throttled_until <= ago(0.0))
    return and_(EndpointRow.disabled_at.is_(None), patient)


def _has_something_due() -> ColumnElement[bool]:
    return exists().where(DeliveryRow.endpoint_id == EndpointRow.id, *_due())


def _flying(session: Session) -> dict[str, int]:
    """How many requests are in the air, by endpoint."""
    leased = and_(DeliveryRow.status == "pending", DeliveryRow.lease_until > ago(0.0))
    found = session.execute(select(DeliveryRow.endpoint_id, func.count()).where(leased).group_by(DeliveryRow.endpoint_id))
    return {endpoint_id: count for endpoint_id, count in found}  # noqa: C416


def take(db: Database, chosen: Sequence[tuple[str, int]]) -> list[Claim]:
    """The compare-and-set: those of the deliveries, given with the fence as seen, that nobody else took meanwhile.

    The fence grows by a number of our own: where the database went away before it said that the claims are committed,
    those that were are known by it, and are sent at once instead of waiting for the end of a lease that nobody works under.
    """
    step = random.randint(1, 4096)

    def attempt(again: bool) -> list[Claim]:
        with db.write() as session:
            found = (_taken(session, delivery_id, fence, fence + step, again) for delivery_id, fence in chosen)
            return [claim for claim in found if claim is not None]

    return insistently(attempt, AWAY_S)


def _taken(session: Session, delivery_id: str, seen: int, fence: int, again: bool) -> Claim | None:
    this = DeliveryRow.id == delivery_id
    row = session.execute(
        update(DeliveryRow)
        .where(this, DeliveryRow.fence == seen, free())
        .values(fence=fence, attempts=DeliveryRow.attempts + 1, lease_until=now() + LEASE_S)
        .returning(DeliveryRow.endpoint_id, DeliveryRow.attempts)
        .execution_options(synchronize_session=False)
    ).first()
    if row is None and again:
        held = and_(DeliveryRow.fence == fence, DeliveryRow.status == "pending", DeliveryRow.lease_until > ago(0.0))
        ours = select(DeliveryRow.endpoint_id, DeliveryRow.attempts).where(this, held)
        row = session.execute(ours).first()
    return None if row is None else Claim(delivery_id, row.endpoint_id, fence, row.attempts)
