"""Registered webhook receivers: what people and the API ask for.

Who is bound to inboxes sees, and touches, only endpoints of those: each function takes their names as `inboxes`, empty
for all. `by` is whoever does it, as the audit has it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from pipeline import audit, outbox
from pipeline import inboxes as mailrooms
from pipeline.changes import clean
from pipeline.database import Database, DeliveryRow, EndpointRow, now
from pipeline.jobs import new_id
from pipeline.payloads import TEST_EVENT
from pipeline.settings import Settings
from webhooks.secretbox import new_secret, opens, seal
from webhooks.sending import address_allowed

ROTATION_S = 24 * 3600.0
"""After a rotation, requests are signed with the old secret, too, for this long."""
MAX_URL = 2000
MAX_DESCRIPTION = 500
SYSTEM = "system"


class EndpointError(Exception):
    """What was asked of an endpoint or a delivery cannot be done; one sentence. `missing`: there is no such thing."""

    permanent = True

    def __init__(self, sentence: str, *, missing: bool = False) -> None:
        super().__init__(sentence)
        self.missing = missing


def register(
    db: Database,
    settings: Settings,
    url: str,
    *,
    description: str = "",
    events: Sequence[str] = (),
    inbox: str | None = None,
    inboxes: Collection[str] = (),
    by: str = SYSTEM,
) -> tuple[EndpointRow, str]:
    """Add a receiver. Returns it and its signing secret, which is shown this once. `events` empty: it wants them all.

    `inbox`: only its events; None: every inbox's, and those of none. Whoever is bound to one inbox need not name it.
    Raises EndpointError for an address, an inbox or a type of event that will never work, SecretError without a secret key.
    """
    url = _checked_url(settings, url.strip())
    wanted = _checked_events(events)
    inbox = _checked_inbox(db, settings, inbox, inboxes)
    secret = new_secret()
    row = EndpointRow(id=new_id("ep_"), url=url, events=wanted, inbox=inbox, secret=seal(settings, secret))
    row.description = _checked_text(description)
    with db.write() as session:
        row.created_at = session.execute(select(now())).scalar_one()
        session.add(row)
        audit.note(session, by, "endpoint.add", row.id, events=wanted, inbox=inbox)
    return row, secret


def _checked_events(events: Sequence[str]) -> list[str]:
    if unknown := sorted(set(events) - set(outbox.TYPES)):
        raise EndpointError(f"There is no event {unknown[0]!r}: they are {', '.join(outbox.TYPES)}.")
    return [type for type in outbox.TYPES if type in events]


def _checked_text(text: str) -> str:
    return clean(text).strip()[:MAX_DESCRIPTION]


def _checked_inbox(db: Database, settings: Settings, inbox: str | None, inboxes: Collection[str]) -> str | None:
    if inbox is None and len(inboxes) == 1:
        (inbox,) = inboxes
    if inboxes and inbox not in inboxes:
        raise EndpointError(f"Name the inbox whose events it is to have: {', '.join(sorted(inboxes))}.")
    if inbox is not None:
        try:
            mailrooms.get(settings, db, inbox)
        except mailrooms.InboxError as error:
            raise EndpointError(str(error)) from error
    return inbox


def _checked_url(settings: Settings, url: str) -> str:
    if len(url) > MAX_URL:
        raise EndpointError(f"The URL has more than {MAX_URL} characters.")
    if clean(url) != url or any(ord(character) < 33 or character in "\\\x7f" for character in url):
        raise EndpointError("The URL has characters that no URL has.")
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
    host = host.rstrip(".")
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        return False
    try:
        return address_allowed(str(ipaddress.ip_address(host.strip("[]"))))
    except ValueError:
        return True


def all_of_them(db: Database, inboxes: Collection[str] = ()) -> list[EndpointRow]:
    """Every registered receiver, oldest first."""
    query = select(EndpointRow).order_by(EndpointRow.created_at, EndpointRow.id)
    if inboxes:
        query = query.where(EndpointRow.inbox.in_(inboxes))
    with db.read() as session:
        return list(session.scalars(query))


def get(db: Database, endpoint_id: str, inboxes: Collection[str] = ()) -> EndpointRow:
    """The receiver of that id. Raises EndpointError if there is none."""
    with db.read() as session:
        return found(session, endpoint_id, inboxes)


def found(session: Session, endpoint_id: str, inboxes: Collection[str] = (), *, lock: bool = False) -> EndpointRow:
    """The receiver of that id, within a transaction; with `lock`, nobody changes it before the transaction ends."""
    row = session.get(EndpointRow, endpoint_id, with_for_update=lock or None)
    if row is None or (inboxes and row.inbox not in inboxes):
        raise EndpointError("There is no endpoint of that id.", missing=True)
    return row


def enabled(session: Session, endpoint_id: str, inboxes: Collection[str] = ()) -> EndpointRow:
    """As `found`, locked. Raises EndpointError as well if it is disabled."""
    row = found(session, endpoint_id, inboxes, lock=True)
    if row.disabled_at is not None:
        raise EndpointError("The endpoint is disabled: enable it first.")
    return row


def change(
    db: Database,
    endpoint_id: str,
    *,
    description: str | None = None,
    events: Sequence[str] | None = None,
    inboxes: Collection[str] = (),
    by: str = SYSTEM,
) -> EndpointRow:
    """Give a receiver another description, or let it hear of other events from now on. None: as it was."""
    with db.write() as session:
        row = found(session, endpoint_id, inboxes, lock=True)
        if description is not None:
            row.description = _checked_text(description)
        if events is not None:
            row.events = _checked_events(events)
        audit.note(session, by, "endpoint.change", endpoint_id, events=row.events, description=row.description)
    return row


def remove(db: Database, endpoint_id: str, inboxes: Collection[str] = (), *, by: str = SYSTEM) -> None:
    """Forget a receiver and everything that was to be sent to it."""
    with db.write() as session:
        found(session, endpoint_id, inboxes, lock=True)
        session.execute(delete(EndpointRow).where(EndpointRow.id == endpoint_id))
        audit.note(session, by, "endpoint.remove", endpoint_id)


def rotate(db: Database, settings: Settings, endpoint_id: str, inboxes: Collection[str] = (), *, by: str = SYSTEM) -> str:
    """Give a receiver a new secret and return it. For 24 hours requests carry a signature with either, if the old one can be read."""
    secret = new_secret()
    with db.write() as session:
        row = found(session, endpoint_id, inboxes, lock=True)
        row.previous_secret = row.previous_until = None
        if opens(settings, row.secret):
            row.previous_secret = row.secret
            row.previous_until = session.execute(select(now())).scalar_one() + ROTATION_S
        row.secret = seal(settings, secret)
        audit.note(session, by, "endpoint.rotate", endpoint_id)
    return secret


def disable(db: Database, endpoint_id: str, reason: str = "Disabled by hand.", inboxes: Collection[str] = (), *, by: str = SYSTEM) -> None:
    """Send nothing more to a receiver; what is pending waits."""
    with db.write() as session:
        row = found(session, endpoint_id, inboxes, lock=True)
        row.disabled_at = session.execute(select(now())).scalar_one()
        row.disabled_reason = reason
        audit.note(session, by, "endpoint.disable", endpoint_id, reason=reason)


def enable(db: Database, endpoint_id: str, inboxes: Collection[str] = (), *, by: str = SYSTEM) -> None:
    """Send to a receiver again, beginning with what is pending."""
    with db.write() as session:
        row = found(session, endpoint_id, inboxes, lock=True)
        row.disabled_at = row.disabled_reason = row.failing_since = row.throttled_until = None
        audit.note(session, by, "endpoint.enable", endpoint_id)


def add_test(db: Database, endpoint_id: str, inboxes: Collection[str] = (), *, by: str = SYSTEM) -> str:
    """Record an event `webhook.test` for one receiver only. Returns the delivery's id."""
    with db.write() as session:
        row = enabled(session, endpoint_id, inboxes)
        sequence = outbox.next_sequence(session, endpoint_id)
        data = {"endpoint_id": endpoint_id, "message": "This is a test.", "sequence": sequence}
        event_id = outbox.announce(session, TEST_EVENT, endpoint_id, sequence, data, inbox=row.inbox, only=endpoint_id)
        audit.note(session, by, "endpoint.test", endpoint_id)
        return session.execute(select(DeliveryRow.id).where(DeliveryRow.event_id == event_id)).scalar_one()
