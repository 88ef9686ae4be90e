"""A claim held: renewed while the work lasts, from a thread of its own, and known to be lost when it is."""

from __future__ import annotations

import logging
from threading import Event, Thread
from types import TracebackType

from sqlalchemy.exc import SQLAlchemyError

from pipeline import ledger
from pipeline.database import Database
from pipeline.ledger import Claim

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Somebody else has the job now, or it was cancelled: nothing that is done here is kept."""


class Lease:
    """Renews a claim every third of `lease_s` seconds until the block ends. A database that does not answer is asked again."""

    def __init__(self, db: Database, claim: Claim, lease_s: float) -> None:
        self._db = db
        self._claim = claim
        self._lease_s = lease_s
        self._over = Event()
        self._lost = Event()
        self._thread = Thread(target=self._renew, name=f"lease {claim.job_id}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()

    def check(self) -> None:
        """Raise LeaseLost if the claim is known to be lost: called between steps, to stop early."""
        if self._lost.is_set():
            raise LeaseLost

    def _renew(self) -> None:
        while not self._over.wait(self._lease_s / 3):
            try:
                if ledger.renew(self._db, self._claim, self._lease_s):
                    continue
            except SQLAlchemyError as error:
                log.warning("The lease of job %s could not be renewed: %s", self._claim.job_id, error)
                continue
            if not self._over.is_set():
                log.warning("Job %s is no longer ours at %s.", self._claim.job_id, self._claim.stage.value)
                self._lost.set()
            return
