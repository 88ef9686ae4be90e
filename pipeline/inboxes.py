"""The inboxes: which one an upload came through, and what is done differently for it.

The one named `default` is that of the settings; the others are rows of their own. What an inbox leaves empty is as the
settings have it, so that an `Inbox` is always whole. Of one bucket, no two inboxes overlap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from sqlalchemy import select

from pipeline.database import Database
from pipeline.events import IMAGE_SUFFIXES
from pipeline.jobs import Queue, Upload, Verdict
from pipeline.settings import Settings
from pipeline.tables.inboxes import InboxRow

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
DEFAULT = "default"
"""The inbox of the settings."""


class InboxError(Exception):
    """There is no such inbox, or there cannot be; the message says why in one sentence."""

    permanent = True


@dataclass(frozen=True)
class Inbox:
    """A bucket, or a prefix of one, with all that holds for its uploads."""

    name: str
    bucket: str
    prefix: str = ""
    suffixes: tuple[str, ...] = ()
    """Endings that are taken, in lower case; empty: those of images, and keys without any."""
    results_bucket: str = ""
    results_prefix: str = ""
    queue: Queue = Queue.BULK
    authentic_below: float | None = None
    manipulated_from: float | None = None
    """Thresholds in place of the model's own: both or neither."""
    source: str = "webhook"
    """How its uploads are heard of, beside the listing: `webhook`, `sqs`, or `none`."""
    sqs_url: str = ""
    enabled: bool = True
    created_at: float = 0.0
    """Seconds since the epoch. Older objects are no lost uploads: only a back-fill takes them."""

    def verdict(self, score: float, by_model: Verdict) -> Verdict:
        """What this inbox makes of a score (0 to 1); the model's own verdict if it has no thresholds."""
        if self.authentic_below is None or self.manipulated_from is None:
            return by_model
        if score >= self.manipulated_from:
            return Verdict.MANIPULATED
        return Verdict.AUTHENTIC if score < self.authentic_below else Verdict.UNCERTAIN

    def holds(self, bucket: str, key: str) -> bool:
        """Whether an object lies in it."""
        return bucket == self.bucket and key.startswith(self.prefix)

    def outputs(self, bucket: str, key: str) -> bool:
        """Whether an object lies where its results go."""
        return bucket == self.results_bucket and key.startswith(self.results_prefix)


@dataclass(frozen=True)
class Directory:
    """All inboxes as they stood at one moment: for many uploads at once."""

    inboxes: tuple[Inbox, ...]

    @property
    def enabled(self) -> tuple[Inbox, ...]:
        """Those that are turned on."""
        return tuple(inbox for inbox in self.inboxes if inbox.enabled)

    def named(self, name: str) -> Inbox | None:
        """The inbox of that name, turned on or off, or None."""
        return next((inbox for inbox in self.inboxes if inbox.name == name), None)

    def of(self, upload: Upload) -> Inbox | None:
        """The enabled inbox an upload came through, or None. Should the settings' inbox overlap another, the narrower one."""
        found = [inbox for inbox in self.enabled if inbox.holds(upload.bucket, upload.key)]
        return max(found, key=lambda inbox: len(inbox.prefix), default=None)

    def why_not(self, upload: Upload) -> str | None:
        """None if a job is to be made of an upload; else why not, in a few words."""
        if any(inbox.outputs(upload.bucket, upload.key) for inbox in self.inboxes):
            return "it is our own output"
        inbox = self.of(upload)
        if inbox is None:
            return "it is in no inbox"
        if not upload.key or upload.key.endswith("/"):
            return "it is a directory"
        if "/.uploads/" in f"/{upload.key}":
            return "it is a part of an unfinished upload"
        return _unwanted(upload.key, inbox.suffixes)


def _unwanted(key: str, suffixes: tuple[str, ...]) -> str | None:
    if suffixes:
        return None if key.lower().endswith(suffixes) else f"it does not end in {' or '.join(suffixes)}"
    suffix = PurePosixPath(key).suffix.lower()
    return f"{suffix} is no image" if suffix and suffix not in IMAGE_SUFFIXES else None


def directory(settings: Settings, db: Database) -> Directory:
    """Every inbox, that of the settings first, the others by name; those turned off as well."""
    with db.read() as session:
        rows = session.scalars(select(InboxRow).order_by(InboxRow.name)).all()
    return Directory((of_settings(settings), *(whole(settings, row) for row in rows)))


def of(settings: Settings, db: Database, upload: Upload) -> Inbox | None:
    """The enabled inbox an upload came through, or None if it is in none. Asks the database."""
    return directory(settings, db).of(upload)


def get(settings: Settings, db: Database, name: str) -> Inbox:
    """The inbox of that name, turned on or off. Raises InboxError if there is none. Asks the database, but not for `default`."""
    if name == DEFAULT:
        return of_settings(settings)
    if not NAME.fullmatch(name):
        raise InboxError("There is no inbox of that name.")
    with db.read() as session:
        row = session.get(InboxRow, name)
    if row is None:
        raise InboxError(f"There is no inbox {name}.")
    return whole(settings, row)


def effective(settings: Settings, db: Database, name: str) -> Settings:
    """The settings as they hold for one inbox: its bucket, its prefix, and where its results go.

    For names of objects only: clients are made from the process's own settings. Raises InboxError if there is none.
    """
    if name == DEFAULT:
        return settings
    inbox = get(settings, db, name)
    place = {"inbox_bucket": inbox.bucket, "inbox_prefix": inbox.prefix}
    return settings.model_copy(update={**place, "results_bucket": inbox.results_bucket, "results_prefix": inbox.results_prefix})


def of_settings(settings: Settings) -> Inbox:
    """The inbox named `default`."""
    return Inbox(
        DEFAULT,
        settings.inbox_bucket,
        settings.inbox_prefix,
        results_bucket=settings.results_bucket,
        results_prefix=settings.results_prefix,
        source="sqs" if settings.sqs_url else "webhook",
        sqs_url=settings.sqs_url,
    )


def whole(settings: Settings, row: InboxRow) -> Inbox:
    """The inbox of a row, with what it leaves to the settings."""
    return Inbox(
        row.name,
        row.bucket,
        row.prefix,
        tuple(row.suffixes),
        row.results_bucket or settings.results_bucket,
        row.results_prefix or settings.results_prefix,
        Queue(row.queue),
        row.authentic_below,
        row.manipulated_from,
        row.source,
        row.sqs_url,
        row.enabled,
        row.created_at,
    )
