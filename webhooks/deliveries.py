"""The log of what was sent to receivers, with every attempt; one delivery sent again, or every event of a time range."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pipeline import audit, outbox
from pipeline.database import Database, DeliveryAttemptRow, DeliveryRow, EndpointRow, EventRow, now
from pipeline.payloads import TEST_EVENT
from webhooks.endpoints import SYSTEM, EndpointError, enabled
from webhooks.endpoints import get as get_endpoint

AT_ONCE = 500
"""So many events are replayed in one transaction."""


@dataclass(frozen=True)
class Delivery:
    """A delivery with the event it carries, its receiver's URL, and every attempt, oldest first."""

    row: DeliveryRow
    event: EventRow
    url: str
    disabled: bool
    tries: Sequence[DeliveryAttemptRow]


def page(
    db: Database,
    *,
    endpoint_id: str | None = None,
    status: str | None = None,
    subject: str | None = None,
    event_type: str | None = None,
    inboxes: Collection[str] = (),
    after: str | None = None,
    limit: int = 50,
) -> tuple[list[Delivery], str | None]:
    """Up to `limit` deliveries, newest first, and the id to pass as `after` for the next page; None: no more.

    `subject`: the job they are about. `inboxes`: only those to endpoints of these; empty: to all.
    """
    query = (
        select(DeliveryRow, EventRow, EndpointRow.url, EndpointRow.disabled_at)
        .join(EventRow, EventRow.id == DeliveryRow.event_id)
        .join(EndpointRow, EndpointRow.id == DeliveryRow.endpoint_id)
        .order_by(DeliveryRow.id.desc())
        .limit(limit + 1)
    )
    if endpoint_id is not None:
        query = query.where(DeliveryRow.endpoint_id == endpoint_id)
    if status is not None:
        query = query.where(DeliveryRow.status == status)
    if subject is not None:
        query = query.where(EventRow.subject == subject)
    if event_type is not None:
        query = query.where(EventRow.type == event_type)
    if inboxes:
        query = query.where(EndpointRow.inbox.in_(inboxes))
    if after is not None:
        query = query.where(DeliveryRow.id < after)
    with db.read() as session:
        rows = session.execute(query).all()
        shown = rows[:limit]
        tries: dict[str, list[DeliveryAttemptRow]] = {row.id: [] for row, *_ in shown}
        wanted = select(DeliveryAttemptRow).where(DeliveryAttemptRow.delivery_id.in_(tries)).order_by(DeliveryAttemptRow.id)
        for attempt in session.scalars(wanted):
            tries[attempt.delivery_id].append(attempt)
    found = [Delivery(row, event, url, disabled is not None, tries[row.id]) for row, event, url, disabled in shown]
    return found, (shown[-1][0].id if len(rows) > limit else None)


def get(db: Database, delivery_id: str, inboxes: Collection[str] = ()) -> Delivery:
    """One delivery. Raises EndpointError if there is none of that id."""
    with db.read() as session:
        row, endpoint = _found(session, delivery_id, inboxes)
        tries = select(DeliveryAttemptRow).where(DeliveryAttemptRow.delivery_id == delivery_id).order_by(DeliveryAttemptRow.id)
        event = session.get_one(EventRow, row.event_id)
        return Delivery(row, event, endpoint.url, endpoint.disabled_at is not None, session.scalars(tries).all())


def _found(session: Session, delivery_id: str, inboxes: Collection[str]) -> tuple[DeliveryRow, EndpointRow]:
    row = session.get(DeliveryRow, delivery_id)
    endpoint = None if row is None else session.get(EndpointRow, row.endpoint_id)
    if row is None or endpoint is None or (inboxes and endpoint.inbox not in inboxes):
        raise EndpointError("There is no delivery of that id.", missing=True)
    return row, endpoint


def redeliver(db: Database, delivery_id: str, inboxes: Collection[str] = (), *, by: str = SYSTEM) -> None:
    """Send one delivery again, with the event's own id, whatever became of it so far."""
    with db.write() as session:
        row, endpoint = _found(session, delivery_id, inboxes)
        enabled(session, endpoint.id)
        _again(session, [row.id])
        audit.note(session, by, "delivery.redeliver", delivery_id, event=row.event_id)


def replay(
    db: Database,
    endpoint_id: str,
    *,
    since: float,
    until: float | None = None,
    undelivered: bool = False,
    inboxes: Collection[str] = (),
    by: str = SYSTEM,
) -> int:
    """Send a receiver every event of a time range again (seconds since the epoch), each with its own id. Returns how many.

    Those are the events that it wants, whether it was told of them at the time or not: what happened while it was disabled,
    or before it was registered, is among them. With `undelivered`, only those that it has not taken yet.
    """
    count, last = 0, ""
    with db.write() as session:
        endpoint = enabled(session, endpoint_id, inboxes)
        latest = session.execute(select(now())).scalar_one() if until is None else until
        audit.note(session, by, "endpoint.replay", endpoint_id, since=since, until=latest, undelivered=undelivered)
    this = and_(DeliveryRow.event_id == EventRow.id, DeliveryRow.endpoint_id == endpoint_id)
    events = select(EventRow.id, EventRow.type, EventRow.inbox, DeliveryRow.id.label("delivery_id")).join(DeliveryRow, this, isouter=True)
    events = events.where(EventRow.created_at >= since, EventRow.created_at <= latest)
    events = events.where(or_(EventRow.type != TEST_EVENT, DeliveryRow.id.is_not(None)))
    if undelivered:
        events = events.where(or_(DeliveryRow.id.is_(None), DeliveryRow.status != "delivered"))
    while True:
        try:
            with db.write() as session:
                rows = session.execute(events.where(EventRow.id > last).order_by(EventRow.id).limit(AT_ONCE)).all()
                if not rows:
                    return count
                _again(session, [row.delivery_id for row in rows if row.delivery_id is not None])
                at = session.execute(select(now())).scalar_one()
                unheard = [row for row in rows if row.delivery_id is None]
                wanted = [row.id for row in unheard if outbox.wants(row.type, row.inbox, endpoint.events, endpoint.inbox)]
                if wanted:
                    session.execute(insert(DeliveryRow), [outbox.delivery(event_id, endpoint_id, at) for event_id in wanted])
        except IntegrityError:  # somebody else replays it, too, or has removed the endpoint
            get_endpoint(db, endpoint_id, inboxes)
            continue
        count += len(wanted) + len(rows) - len(unheard)
        last = rows[-1].id


def _again(session: Session, delivery_ids: Sequence[str]) -> None:
    afresh = {"status": "pending", "attempts": 0, "lease_until": None, "next_attempt_at": now(), "delivered_at": None}
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.id.in_(delivery_ids))
        .values(**afresh, fence=DeliveryRow.fence + 1)
        .execution_options(synchronize_session=False)
    )
