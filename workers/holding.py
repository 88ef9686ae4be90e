"""A training held: its lease and that of its cards are renewed while the work lasts, and it is known when one is lost."""

from __future__ import annotations

import logging
import time
from threading import Event, Thread
from types import TracebackType

from sqlalchemy.exc import SQLAlchemyError

from pipeline import cards, trainings
from pipeline.cards import CardError, CardLease
from pipeline.database import Database
from pipeline.trainings import Claim

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""A cancelled training is noticed so soon, however long the leases are."""


class HoldLost(Exception):
    """Somebody else has the training or a card now, or it was cancelled: nothing that is done here is kept any more."""


class Hold:
    """Renews both leases until the block ends. A database that does not answer is asked again, but not for longer than the lease:
    by then somebody else may have the training, so it is lost.
    """

    def __init__(self, db: Database, claim: Claim, lease: CardLease | None, lease_s: float) -> None:
        self._db, self._claim, self._lease, self._lease_s = db, claim, lease, lease_s
        self._over, self.lost = Event(), Event()
        self._thread = Thread(target=self._renew, name=f"hold {claim.training_id}", daemon=True)

    def __enter__(self) -> Hold:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """Raise HoldLost if it is known to be lost."""
        if self.lost.is_set():
            raise HoldLost

    def free_cards(self) -> None:
        """The cards are needed no longer."""
        lease, self._lease = self._lease, None
        if lease is not None:
            cards.release(self._db, lease)

    def _renew(self) -> None:
        good = time.monotonic()
        while not self._over.wait(min(LOOK_S, self._lease_s / 3)):
            try:
                if not trainings.renew(self._db, self._claim, self._lease_s):
                    break
                if (lease := self._lease) is not None:
                    cards.renew(self._db, lease, self._lease_s)
                good = time.monotonic()
                continue
            except CardError as error:
                if self._lease is None:  # given back at this moment
                    continue
                log.warning("%s", error)
                break
            except SQLAlchemyError as error:
                log.warning("The lease of training %s could not be renewed: %s", self._claim.training_id, error)
                if time.monotonic() - good < self._lease_s:
                    continue
                break
        if not self._over.is_set():
            log.warning("Training %s is no longer ours.", self._claim.training_id)
            self.lost.set()
