"""What the worker's own process does when a child of its pool dies with a job: the job goes on at once, in another child.

The ledger would find out by itself, when the lease expires. The worker saw it happen.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback  # type: ignore[attr-defined]
from billiard.exceptions import WorkerLostError
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool
from celery.exceptions import Ignore
from celery.worker.request import Request
from sqlalchemy.exc import SQLAlchemyError

from pipeline import deaths
from pipeline.database import Database
from pipeline.settings import settings
from workers.app import deliver_soon, wake

log = logging.getLogger(__name__)

LOOK_S = 0.2
"""How often the pool looks after its children."""


class Watchful(AsynPool):
    """A pool that misses a dead child at once.

    Celery looks when the pipe to the child closes. That is a moment before the kernel lets a parent know of the death, so
    that it often looks in vain, and next after five seconds.
    """

    @property
    def timers(self) -> dict[Callable[[], None], float]:
        """What the event loop is to do again and again, and how often."""
        return {self.maintain_pool: LOOK_S}


TaskPool.Pool = Watchful  # of every worker with `-P prefork` that imports the tasks


class Bereaved(Request):
    """A request that does not outlive its child process: the ledger is told, and the message is done with."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Called in the worker's own process with whatever a child ended by."""
        error = exc_info.exception
        error = error.exc if isinstance(error, ExceptionWithTraceback) else error
        if isinstance(error, WorkerLostError) and self._written_down(_why(error)):
            exc_info = _ignored()
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        """Called when a time limit has passed; after the hard one the child is killed."""
        if not soft:
            self._written_down(f"did not hear that its {timeout:g} s were over, and was ended")
        return super().on_timeout(soft, timeout)

    def _written_down(self, why: str) -> bool:
        job_id, chosen = self.args[0], settings()
        worker = f"{socket.gethostname()}:{self.worker_pid}"
        # Of this moment only: children are forked from this process, and must not find its connections.
        db = Database(chosen.database)
        try:
            place = deaths.died(db, job_id, worker=worker, why=why, max_attempts=chosen.max_attempts)
        except SQLAlchemyError as error:
            log.warning("Job %s waits for its lease to expire, its process died and the database does not answer: %s", job_id, error)
            return False
        finally:
            db.dispose()
        log.warning("job %s: its process %s %s", job_id, worker, why)
        if place is None:
            deliver_soon()  # it may have failed
        else:
            wake(job_id, *place)
        return True


def _why(error: BaseException) -> str:
    """How a process ended, in words a person may read."""
    if "SIGALRM" in str(error) or "SIGPROF" in str(error):
        return "could not decode the file in the time it is given, and was ended"
    how = re.search(r"signal \d+ \((\w+)\)|exitcode -?\d+", str(error))
    return f"ended while it worked on it ({how[1] or how[0] if how else 'nobody saw how'})"


def _ignored() -> ExceptionInfo:
    try:
        raise Ignore
    except Ignore:
        return ExceptionInfo()
