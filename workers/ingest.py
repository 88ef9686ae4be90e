"""Uploads become jobs: one at a time as adapters hear of them, and by listing the inboxes for those nobody heard of."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from pipeline import backfills, faults, inboxes, inquiry, ledger
from pipeline.database import Database
from pipeline.inboxes import DEFAULT, Directory
from pipeline.jobs import Queue, Upload
from pipeline.ledger import Accepted, LedgerError
from pipeline.settings import Settings
from pipeline.storage import Storage, StorageError, StoredObject
from workers.app import wake

log = logging.getLogger(__name__)

PAGE = 1000
"""So many objects of a listing are held and compared with the database at once."""
GRACE_S = 5.0
"""Younger objects are left to their events, which know more of an upload than a listing does."""
SKEW_S = 60.0
"""How far the store's clock may be from the database's, where an object's age decides."""
OLD_S = 3600.0
"""An object this old that turns up in a listing is no lost upload but a bucket's past: it waits behind what is fresh."""
REPLACED_S = 86_400.0
"""Of versions that were overwritten or deleted since, only those written so recently are missed: the others are the past."""
ROOM = 10_000
"""So many old ones may wait; the others are found again later."""


def take(
    db: Database, settings: Settings, upload: Upload, *, queue: Queue | None = None, among: Directory | None = None
) -> Accepted | None:
    """Make the job of an upload and wake it; None if the upload is none of ours.

    However often and by whichever way one upload is told, it has one job. `queue`: how urgent it is, if not as its inbox
    has it. `among`: the inboxes, for who knows them already. Raises LedgerError if it cannot be a job at all.
    """
    among = among or inboxes.directory(settings, db)
    why, inbox = among.why_not(upload), among.of(upload)
    if why is not None or inbox is None:
        log.info("%s/%s is left alone: %s", upload.bucket, upload.key, why)
        return None
    queue = queue or inbox.queue
    accepted = ledger.accept(db, upload, queue=queue, inbox=inbox.name)
    faults.point("accepted", upload.key)
    if accepted.created and not wake(accepted.job_id, queue=queue):
        ledger.unwoken(db, [accepted.job_id])
    return accepted


@dataclass(frozen=True)
class Swept:
    """What a sweep through an inbox found. `after`: the key to go on behind, or empty when it came to the end."""

    seen: int
    found: int
    after: str


def reconcile(
    db: Database, store: Storage, settings: Settings, *, inbox: str = DEFAULT, after: str = "", budget_s: float = float("inf")
) -> Swept:
    """List an inbox behind the key `after`, and take every upload that has no job yet.

    Of a bucket with versions that is every version, also one that was overwritten meanwhile. Holds one page in memory
    however large the bucket (but all versions of one key), and asks the database once per page. Ends, page by page,
    after `budget_s` seconds: go on later from where it stopped. Raises StorageError.
    """
    began = time.monotonic()
    now = time.time()
    among = inboxes.directory(settings, db)
    place = among.named(inbox)
    if place is None or not place.enabled:
        return Swept(0, 0, "")
    seen = found = 0
    listing = store.versions(place.bucket, place.prefix, start_after=after)
    for page in _pages(listing):
        seen += len(page)
        since = place.created_at - SKEW_S
        ripe = [one for one in page if max(since, 0.0 if one.newest else now - REPLACED_S) <= one.modified <= now - GRACE_S]
        told = [upload_of(place.bucket, one) for one in ripe]
        wanted = [upload for upload in told if among.why_not(upload) is None and among.of(upload) == place]
        lost = inquiry.unknown(db, wanted)
        old = [upload for upload in lost if upload.modified < now - OLD_S]
        room = max(0, ROOM - backfills.waiting(db)) if old else 0
        for upload in old[:room]:
            found += _found(db, settings, upload, Queue.BACKFILL, among)
        for upload in lost:
            if upload.modified >= now - OLD_S:
                found += _found(db, settings, upload, place.queue, among)
        if len(page) >= PAGE and time.monotonic() - began >= budget_s:
            return Swept(seen, found, page[-1].key)
    return Swept(seen, found, "")


def reconcile_all(db: Database, store: Storage, settings: Settings, places: dict[str, str], *, budget_s: float) -> int:
    """List every inbox that is turned on, each behind the key that `places` has for it, which is brought up to date.

    Of each at least a page; one that cannot be listed stops no other. Returns how many uploads were found.
    """
    until = time.monotonic() + budget_s
    found = 0
    for inbox in inboxes.directory(settings, db).enabled:
        left = max(0.0, until - time.monotonic())
        try:
            done = reconcile(db, store, settings, inbox=inbox.name, after=places.get(inbox.name, ""), budget_s=left)
        except StorageError as error:
            log.warning("The inbox %s could not be listed: %s", inbox.name, error)
            continue
        places[inbox.name] = done.after
        found += done.found
    return found


def _found(db: Database, settings: Settings, upload: Upload, queue: Queue, among: Directory) -> bool:
    try:
        accepted = take(db, settings, upload, queue=queue, among=among)
    except LedgerError as error:
        log.warning("%r in the inbox can have no job: %s", upload.key, error)
        return False
    return accepted is not None and accepted.created


def upload_of(bucket: str, one: StoredObject) -> Upload:
    """An object of a listing as an upload."""
    return Upload(bucket, one.key, one.version_id, one.etag, "", one.size, origin="sweep", modified=one.modified)


def _pages(listing: Iterator[StoredObject]) -> Iterator[list[StoredObject]]:
    """At least `PAGE` at a time, the versions of one key together and the oldest first."""
    page: list[StoredObject] = []
    for _, versions in itertools.groupby(listing, key=attrgetter("key")):
        page += reversed(list(versions))
        if len(page) >= PAGE:
            yield page
            page = []
    if page:
        yield page
