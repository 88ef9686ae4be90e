"""Uploads become jobs: one at a time as adapters hear of them, and by listing the inbox for those nobody heard of."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline import faults, inquiry, ledger
from pipeline.database import Database
from pipeline.events import admissible
from pipeline.jobs import Queue, Upload
from pipeline.ledger import Accepted, LedgerError
from pipeline.settings import Settings
from pipeline.storage import Storage, StoredObject
from workers.app import wake

log = logging.getLogger(__name__)

PAGE = 1000
"""So many objects of a listing are held and compared with the database at once."""
GRACE_S = 5.0
"""Younger objects are left to their events, which know more of an upload than a listing does."""


def take(db: Database, settings: Settings, upload: Upload, *, queue: Queue = Queue.BULK) -> Accepted | None:
    """Make the job of an upload and wake it; None if the upload is none of ours.

    However often and by whichever way one upload is told, it has one job. Raises LedgerError if it cannot be one at all.
    """
    if why := admissible(upload, settings):
        log.info("%s/%s is left alone: %s", upload.bucket, upload.key, why)
        return None
    accepted = ledger.accept(db, upload, queue=queue)
    faults.point("accepted", upload.key)
    if accepted.created and not wake(accepted.job_id, queue=queue):
        ledger.unwoken(db, [accepted.job_id])
    return accepted


@dataclass(frozen=True)
class Swept:
    """What a sweep through the inbox found. `after`: the key to go on behind, or empty when it came to the end."""

    seen: int
    found: int
    after: str


def reconcile(db: Database, store: Storage, settings: Settings, *, after: str = "", budget_s: float = float("inf")) -> Swept:
    """List the inbox behind the key `after`, and take every upload that has no job yet.

    Holds one page in memory however large the bucket, and asks the database once per page. Ends, page by page, after
    `budget_s` seconds: go on later from where it stopped. Raises StorageError.
    """
    began = time.monotonic()
    newest = time.time() - GRACE_S
    seen = found = 0
    listing = store.listing(settings.inbox_bucket, settings.inbox_prefix, start_after=after)
    for page in _pages(listing):
        seen += len(page)
        uploads = [_upload(settings.inbox_bucket, one) for one in page if one.modified <= newest]
        wanted = [upload for upload in uploads if admissible(upload, settings) is None]
        for upload in inquiry.unknown(db, wanted):
            found += _found(db, settings, upload)
        if len(page) == PAGE and time.monotonic() - began >= budget_s:
            return Swept(seen, found, page[-1].key)
    return Swept(seen, found, "")


def _found(db: Database, settings: Settings, upload: Upload) -> bool:
    try:
        accepted = take(db, settings, upload)
    except LedgerError as error:
        log.warning("%r in the inbox can have no job: %s", upload.key, error)
        return False
    return accepted is not None and accepted.created


def _upload(bucket: str, one: StoredObject) -> Upload:
    return Upload(bucket, one.key, one.version_id, one.etag, "", one.size, origin="sweep", modified=one.modified)


def _pages(listing: Iterator[StoredObject]) -> Iterator[list[StoredObject]]:
    while page := list(itertools.islice(listing, PAGE)):
        yield page
