"""Registered webhook receivers, and the log of what was sent to them: what people and the API ask for."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Update, and_, delete, func, select, update
from sqlalchemy.orm import Session
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from pipeline import outbox
from pipeline.database import Database, DeliveryAttemptRow, DeliveryRow, EndpointRow, EventRow, now
from pipeline.jobs import new_id
from pipeline.settings import Settings
from webhooks.secretbox import new_secret, seal
from webhooks.sending import address_allowed

ROTATION_S = 24 * 3600.0
"""After a rotation, requests are signed with the old secret, too, for this long."""
MAX_URL = 2000
TEST_EVENT = "webhook.test"


class EndpointError(Exception):
    """What was asked of an endpoint or a delivery cannot be done; one sentence. `missing`: there is no such thing."""

    permanent = True

    def __init__(self, sentence: str, *, missing: bool = False) -> None:
        super().__init__(sentence)
        self.missing = missing


@dataclass(frozen=True)
class Delivery:
    """A delivery with the event it carries, its receiver's URL, and every attempt, oldest first."""

    row: DeliveryRow
    event: EventRow
    url: str
    disabled: bool
    tries: Sequence[DeliveryAttemptRow]


def register(db: Database, settings: Settings, url: str, *, description: str = "", events: Sequence[str] = ()) -> tuple[EndpointRow, str]:
    """Add a receiver. Returns it and its signing secret, which is shown this once. `events` empty: it wants them all.

    Raises EndpointError for an address or a type of event that will never work, SecretError without a secret key.
    """
    url = _checked_url(settings, url.strip())
    if unknown := sorted(set(events) - set(outbox.TYPES)):
        raise EndpointError(f"There is no event {unknown[0]!r}: they are {', '.join(outbox.TYPES)}.")
    secret = new_secret()
    row = EndpointRow(
        id=new_id("ep_"),
        url=url,
        description=description.strip()[:500],
        events=[type for type in outbox.TYPES if type in events],
        secret=seal(settings, secret),
        created_at=time.time(),
    )
    with db.write() as session:
        session.add(row)
    return row, secret


def _checked_url(settings: Settings, url: str) -> str:
    if len(url) > MAX_URL:
        raise EndpointError(f"The URL has more than {MAX_URL} characters.")
    try:
        parts = parse_url(url)
    except LocationParseError as error:
        raise EndpointError("That is not a URL.") from error
    if parts.scheme not in ("https", "http") or not parts.host:
        raise EndpointError("The URL must be absolute and start with https://.")
    if parts.scheme == "http" and not settings.webhook_allow_http:
        raise EndpointError("The URL must start with https://; UNMASK_WEBHOOK_ALLOW_HTTP=true lifts that.")
    if parts.auth:
        raise EndpointError("The URL must not carry a user name or password: requests are signed instead.")
    if not settings.webhook_allow_private and not _may_be_public(parts.host):
        raise EndpointError(f"{parts.host} is not a public address; UNMASK_WEBHOOK_ALLOW_PRIVATE=true allows your own network.")
    return url


def _may_be_public(host: str) -> bool:
    # Names are looked at again, and pinned, at every attempt: this only spares people a mistake that can be seen now.
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        return False
    try:
        return address_allowed(str(ipaddress.ip_address(host.strip("[]"))))
    except ValueError:
        return True


def all_of_them(db: Database) -> list[EndpointRow]:
    """Every registered receiver, oldest first."""
    with db.read() as session:
        return list(session.scalars(select(EndpointRow).order_by(EndpointRow.created_at, EndpointRow.id)))


def get(db: Database, endpoint_id: str) -> EndpointRow:
    """The receiver of that id. Raises EndpointError if there is none."""
    with db.read() as session:
        return _get(session, endpoint_id)


def _get(session: Session, endpoint_id: str) -> EndpointRow:
    row = session.get(EndpointRow, endpoint_id)
    if row is None:
        raise EndpointError("There is no endpoint of that id.", missing=True)
    return row


def remove(db: Database, endpoint_id: str) -> None:
    """Forget a receiver and everything that was to be sent to it."""
    with db.write() as session:
        _get(session, endpoint_id)
        session.execute(delete(EndpointRow).where(EndpointRow.id == endpoint_id))


def rotate(db: Database, settings: Settings, endpoint_id: str) -> str:
    """Give a receiver a new secret and return it. For 24 hours requests carry a signature with either."""
    secret = new_secret()
    with db.write() as session:
        row = _get(session, endpoint_id)
        row.previous_secret = row.secret
        row.previous_until = session.execute(select(now())).scalar_one() + ROTATION_S
        row.secret = seal(settings, secret)
    return secret


def disable(db: Database, endpoint_id: str, reason: str = "Disabled by hand.") -> None:
    """Send nothing more to a receiver; what is pending waits."""
    with db.write() as session:
        row = _get(session, endpoint_id)
        row.disabled_at = session.execute(select(now())).scalar_one()
        row.disabled_reason = reason


def enable(db: Database, endpoint_id: str) -> None:
    """Send to a receiver again, beginning with what is pending."""
    with db.write() as session:
        row = _get(session, endpoint_id)
        row.disabled_at = row.disabled_reason = row.failing_since = None


def add_test(db: Database, endpoint_id: str) -> str:
    """Record an event `webhook.test` for one receiver only. Returns the delivery's id."""
    with db.write() as session:
        row = _get(session, endpoint_id)
        if row.disabled_at is not None:
            raise EndpointError("The endpoint is disabled: enable it first.")
        at = session.execute(select(now())).scalar_one()
        sequence = outbox.next_sequence(session, endpoint_id)
        timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
        data = {"endpoint_id": endpoint_id, "sequence": sequence, "message": "This is a test."}
        event = EventRow(id=new_id("msg_"), type=TEST_EVENT, subject=endpoint_id, sequence=sequence, created_at=at, payload={})
        event.payload = {"type": TEST_EVENT, "timestamp": timestamp, "data": data}
        session.add(event)
        session.flush()
        delivery = DeliveryRow(id=new_id("dlv_"), event_id=event.id, endpoint_id=endpoint_id, status="pending", created_at=at)
        delivery.next_attempt_at = at
        session.add(delivery)
        return delivery.id


# -- the delivery log


def deliveries(
    db: Database,
    *,
    endpoint_id: str | None = None,
    status: str | None = None,
    subject: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> tuple[list[Delivery], str | None]:
    """Up to `limit` deliveries, newest first, and the id to pass as `after` for the next page; None: no more.

    `subject`: the job they are about.
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
    if after is not None:
        query = query.where(DeliveryRow.id < after)
    with db.read() as session:
        rows = session.execute(query).all()
        page = rows[:limit]
        tries: dict[str, list[DeliveryAttemptRow]] = {row.id: [] for row, *_ in page}
        wanted = select(DeliveryAttemptRow).where(DeliveryAttemptRow.delivery_id.in_(tries)).order_by(DeliveryAttemptRow.id)
        for attempt in session.scalars(wanted):
            tries[attempt.delivery_id].append(attempt)
    found = [Delivery(row, event, url, disabled is not None, tries[row.id]) for row, event, url, disabled in page]
    return found, (page[-1][0].id if len(rows) > limit else None)


def delivery(db: Database, delivery_id: str) -> Delivery:
    """One delivery. Raises EndpointError if there is none of that id."""
    with db.read() as session:
        row = session.get(DeliveryRow, delivery_id)
        if row is None:
            raise EndpointError("There is no delivery of that id.", missing=True)
        event, endpoint = session.get_one(EventRow, row.event_id), session.get_one(EndpointRow, row.endpoint_id)
        tries = select(DeliveryAttemptRow).where(DeliveryAttemptRow.delivery_id == delivery_id).order_by(DeliveryAttemptRow.id)
        return Delivery(row, event, endpoint.url, endpoint.disabled_at is not None, session.scalars(tries).all())


def redeliver(db: Database, delivery_id: str) -> None:
    """Send one delivery again, with the event's own id, whatever became of it so far."""
    with db.write() as session:
        row = session.get(DeliveryRow, delivery_id)
        if row is None:
            raise EndpointError("There is no delivery of that id.", missing=True)
        if _get(session, row.endpoint_id).disabled_at is not None:
            raise EndpointError("The endpoint is disabled: enable it first.")
        session.execute(_again(DeliveryRow.id == delivery_id))


def replay(db: Database, endpoint_id: str, *, since: float, until: float | None = None) -> int:
    """Send a receiver every event of a time range again (seconds since the epoch). Returns how many."""
    with db.write() as session:
        if _get(session, endpoint_id).disabled_at is not None:
            raise EndpointError("The endpoint is disabled: enable it first.")
        of_range = and_(DeliveryRow.endpoint_id == endpoint_id, DeliveryRow.created_at >= since)
        if until is not None:
            of_range = and_(of_range, DeliveryRow.created_at <= until)
        count = session.execute(select(func.count()).select_from(DeliveryRow).where(of_range)).scalar_one()
        session.execute(_again(of_range))
        return count


def _again(which: ColumnElement[bool]) -> Update:
    return (
        update(DeliveryRow)
        .where(which)
        .values(status="pending", attempts=0, fence=DeliveryRow.fence + 1, lease_until=None, next_attempt_at=now(), delivered_at=None)
    )
