"""Inboxes opened, changed and given up. Each deed is checked against all the others' places, and noted in the audit."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import exists, select, text
from sqlalchemy.orm import Session

from pipeline import audit
from pipeline.changes import clean
from pipeline.database import Database, EndpointRow, JobRow, now
from pipeline.inboxes import DEFAULT, NAME, Inbox, InboxError, of_settings, whole
from pipeline.settings import Settings
from pipeline.tables.access import ApiKeyRow, UserRow
from pipeline.tables.inboxes import BackfillRow, InboxRow

SOURCES = ("webhook", "sqs", "none")
MAX_PREFIX = 900
MAX_SUFFIXES = 50
FIELDS = (
    "bucket",
    "prefix",
    "suffixes",
    "results_bucket",
    "results_prefix",
    "queue",
    "authentic_below",
    "manipulated_from",
    "source",
    "sqs_url",
    "enabled",
)
"""What can be changed of an inbox, and how it is called in `change`."""
_LOCK = 0x696E626F78  # "inbox"


def add(db: Database, settings: Settings, wanted: Inbox, *, by: str) -> Inbox:
    """Open an inbox; empty `results_bucket` and `results_prefix` are those of the settings. `by`: as the audit has it.

    Only what is put into it from now on is judged; what lies there already is left to a back-fill. Raises InboxError if the
    name is taken, if it would overlap another inbox or anybody's results, or if a field makes no sense.
    """
    if not NAME.fullmatch(wanted.name):
        raise InboxError("An inbox is named by up to 64 small letters, digits and hyphens, such as press-photos.")
    with db.write() as session:
        others = _others(session, settings, wanted.name)
        if wanted.name == DEFAULT or session.get(InboxRow, wanted.name) is not None:
            raise InboxError(f"There is an inbox {wanted.name} already.")
        row = InboxRow(name=wanted.name, created_at=session.execute(select(now())).scalar_one(), **_checked(wanted, settings, others))
        session.add(row)
        session.flush()
        audit.note(session, by, "inbox.add", wanted.name, **_told(row))
        return whole(settings, row)


def change(db: Database, settings: Settings, name: str, *, by: str, **changes: Any) -> Inbox:
    """Change fields (`FIELDS`) of an inbox; jobs that it has already take the new ones from their next stage on.

    Raises InboxError as `add` does, and if the results bucket is changed of an inbox that has jobs, which would lose theirs.
    """
    if unknown := changes.keys() - set(FIELDS):
        raise InboxError(f"An inbox has no {sorted(unknown)[0]} that could be changed.")
    with db.write() as session:
        others = _others(session, settings, name)
        row = _row(session, name)
        values = _checked(replace(_raw(row), **changes), settings, others)
        if values["results_bucket"] != row.results_bucket and _has_jobs(session, name):
            raise InboxError("The results of its jobs would not be found any more: open another inbox instead.")
        for field, value in values.items():
            setattr(row, field, value)
        session.flush()
        audit.note(session, by, "inbox.change", name, **{field: asdict(_raw(row))[field] for field in changes})
        return whole(settings, row)


def remove(db: Database, name: str, *, by: str) -> None:
    """Give up an inbox that has no jobs. Raises InboxError if it has some: turn it off, its results are found by it."""
    with db.write() as session:
        row = _row(session, name)
        if _has_jobs(session, name):
            raise InboxError(f"The inbox {name} has jobs, whose results are found by it: turn it off instead.")
        if session.execute(select(exists().where(EndpointRow.inbox == name))).scalar_one():
            raise InboxError(f"Webhook endpoints listen to the inbox {name}: remove them first.")
        if _is_anybodys(session, name):  # or they would see what comes in under the same name later
            raise InboxError(f"Keys or users are bound to the inbox {name}: revoke those keys and give those users another inbox first.")
        for backfill in session.scalars(select(BackfillRow).where(BackfillRow.inbox == name)):
            session.delete(backfill)
        session.delete(row)
        audit.note(session, by, "inbox.remove", name)


def _row(session: Session, name: str) -> InboxRow:
    if name == DEFAULT:
        raise InboxError("The inbox default is that of the settings: UNMASK_INBOX_BUCKET and so on.")
    row = session.get(InboxRow, name)
    if row is None:
        raise InboxError(f"There is no inbox {name}.")
    return row


def _others(session: Session, settings: Settings, name: str) -> list[Inbox]:
    """Every other inbox; nobody opens or changes one until the transaction ends."""
    if session.get_bind().dialect.name == "postgresql":  # on SQLite, writers are alone anyway
        session.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    rows = session.scalars(select(InboxRow).where(InboxRow.name != name).order_by(InboxRow.name)).all()
    return [of_settings(settings), *(whole(settings, row) for row in rows)]


def _has_jobs(session: Session, name: str) -> bool:
    return bool(session.execute(select(exists().where(JobRow.inbox == name))).scalar_one())


def _is_anybodys(session: Session, name: str) -> bool:
    bound = session.scalars(select(ApiKeyRow.inboxes).where(ApiKeyRow.revoked_at.is_(None))).all()
    return any(name in names for names in [*bound, *session.scalars(select(UserRow.inboxes))])


def _raw(row: InboxRow) -> Inbox:
    """A row as it is: what is empty stays so."""
    return whole(Settings.model_construct(results_bucket="", results_prefix=""), row)


def _told(row: InboxRow) -> dict[str, Any]:
    return {"bucket": row.bucket, "prefix": row.prefix, "source": row.source}


def _checked(inbox: Inbox, settings: Settings, others: list[Inbox]) -> dict[str, Any]:
    """The fields of an inbox as they are stored. Raises InboxError."""
    _check_fields(inbox)
    itself = replace(
        inbox,
        results_bucket=inbox.results_bucket or settings.results_bucket,
        results_prefix=inbox.results_prefix or settings.results_prefix,
    )
    if inbox.bucket == settings.models_bucket:
        raise InboxError(f"{inbox.bucket} is the bucket of the models: choose another.")
    for other in others:
        if inbox.bucket == other.bucket and (inbox.prefix.startswith(other.prefix) or other.prefix.startswith(inbox.prefix)):
            raise InboxError(f"It would overlap the inbox {other.name}, which is {_place(other.bucket, other.prefix)}.")
    for one in (itself, *others):
        if inbox.bucket == one.results_bucket and inbox.prefix.startswith(one.results_prefix):
            raise InboxError(
                f"The results of the inbox {one.name} go to {_place(one.results_bucket, one.results_prefix)}: choose another place."
            )
        if one.bucket == itself.results_bucket and one.prefix.startswith(itself.results_prefix):
            raise InboxError(f"Its results would lie over the inbox {one.name}: choose another place for them.")
    stored = {field: getattr(inbox, field) for field in FIELDS}
    return stored | {"suffixes": list(inbox.suffixes), "queue": inbox.queue.value}


def _check_fields(inbox: Inbox) -> None:
    for what, name in (("bucket", inbox.bucket), ("results bucket", inbox.results_bucket or "none")):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]|none", name):
            raise InboxError(f"{name!r} cannot be the name of a {what}.")
    for prefix in (inbox.prefix, inbox.results_prefix):
        if prefix.startswith("/") or len(prefix) > MAX_PREFIX or clean(prefix) != prefix:
            raise InboxError(f"A prefix is text of at most {MAX_PREFIX} characters and does not start with a slash.")
    if len(inbox.suffixes) > MAX_SUFFIXES or not all(re.fullmatch(r"\.[^\s/A-Z\0]{1,30}", suffix) for suffix in inbox.suffixes):
        raise InboxError("A suffix is what keys end in, in small letters and with its dot, such as .jpg or .orig.png.")
    low, high = inbox.authentic_below, inbox.manipulated_from
    if (low is None) != (high is None) or (low is not None and high is not None and not 0 <= low <= high <= 1):
        raise InboxError("The thresholds go together, from 0 to 1: authentic_below at most manipulated_from.")
    if inbox.source not in SOURCES:
        raise InboxError(f"The source is one of {', '.join(SOURCES)}.")
    if (inbox.source == "sqs") != bool(inbox.sqs_url):
        raise InboxError("The source sqs needs the URL of a queue, and the others have none.")
    if inbox.sqs_url:
        parts = urlsplit(inbox.sqs_url)
        if (
            parts.scheme not in ("https", "http")
            or not parts.hostname
            or len(inbox.sqs_url) > 2000
            or clean(inbox.sqs_url) != inbox.sqs_url
        ):
            raise InboxError("The URL of the queue is like https://sqs.eu-central-1.amazonaws.com/123456789012/uploads.")


def _place(bucket: str, prefix: str) -> str:
    return f"{bucket}/{prefix}" if prefix else f"all of {bucket}"
