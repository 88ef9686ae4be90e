"""A back-fill, run: lists an inbox page by page and makes jobs of what has none, no faster than they are worked off."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from threading import Event

from pipeline import backfills, inboxes, ledger
from pipeline.backfills import CHUNK, BackfillError, Progress
from pipeline.database import Database
from pipeline.inboxes import Directory, Inbox
from pipeline.jobs import Queue, Upload
from pipeline.settings import Settings
from pipeline.storage import Storage, StoredObject
from workers.app import wake
from workers.ingest import upload_of

log = logging.getLogger(__name__)

WINDOW = 2_000
"""So many jobs of a back-fill wait at once: enough for any number of workers, and little in the broker."""
LOOK_S = 1.0
"""How often it is looked whether there is room again."""

Told = Callable[[Progress, int], None]
"""Hears how far it is after every step, and how many of its jobs wait."""


def run(
    db: Database,
    store: Storage,
    settings: Settings,
    name: str,
    *,
    prefix: str = "",
    anew: bool = False,
    window: int = WINDOW,
    stopping: Event | None = None,
    told: Told = lambda progress, waiting: None,
    send: Callable[..., bool] = wake,
) -> Progress:
    """Make a job, of the least urgency, of every object of an inbox that has none; go on where an earlier run stopped.

    Args:
        prefix: only keys that begin so.
        anew: from the first key, even if an earlier run was not finished.
        window: at most so many of such jobs wait at once; it is listed on as they are worked off.
        stopping: set it to end after the present chunk; what is left is done by the next run.
        told: hears how far it is.
        send: wakes a job.

    Holds one page of a listing in memory however large the bucket. Raises InboxError, BackfillError, StorageError.
    """
    stopping = stopping or Event()
    inbox = inboxes.get(settings, db, name)
    if not inbox.enabled:
        raise BackfillError(f"The inbox {name} is turned off.")
    progress = backfills.begin(db, inbox, prefix, anew=anew)
    listing = store.listing(inbox.bucket, prefix or inbox.prefix, start_after=progress.after)
    for chunk in _chunks(listing):
        if not _room(db, progress, window, stopping, told):
            return progress
        progress, made = _step(db, settings, progress, inbox, chunk)
        unsent = [job_id for job_id in made if not send(job_id, queue=Queue.BACKFILL)]
        if unsent:
            ledger.unwoken(db, unsent)
    progress = backfills.finish(db, progress)
    told(progress, backfills.waiting(db))
    return progress


def _step(db: Database, settings: Settings, progress: Progress, inbox: Inbox, chunk: list[StoredObject]) -> tuple[Progress, list[str]]:
    among = inboxes.directory(settings, db)
    told = [upload_of(inbox.bucket, one) for one in chunk]
    wanted = [upload for upload in told if _wanted(among, inbox, upload)]
    return backfills.take(db, progress, inbox, wanted, seen=len(chunk), up_to=chunk[-1].key)


def _wanted(among: Directory, inbox: Inbox, upload: Upload) -> bool:
    found = among.of(upload)
    return found is not None and found.name == inbox.name and among.why_not(upload) is None


def _room(db: Database, progress: Progress, window: int, stopping: Event, told: Told) -> bool:
    """Wait until there is room for another chunk. False: it is to stop."""
    while not stopping.is_set():
        waiting = backfills.waiting(db)
        told(progress, waiting)
        if waiting + CHUNK <= max(window, CHUNK):
            return not stopping.is_set()
        stopping.wait(LOOK_S)
    return False


def _chunks(listing: Iterator[StoredObject]) -> Iterator[list[StoredObject]]:
    while chunk := list(itertools.islice(listing, CHUNK)):
        yield chunk
