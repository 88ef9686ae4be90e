"""What has to be done again and again: expired leases, lost wake-ups, lost upload events, due webhooks, leftovers.

All of it may run late, twice or in several places at once: every task looks at the database and does what is due. Start
with `celery -A workers.upkeep worker` and one `celery -A workers.app beat`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from threading import Lock
from typing import Any, cast

from celery.signals import worker_shutdown

from pipeline import collections, drift, inquiry, ledger, pruning, schedules
from pipeline.database import Database, database
from pipeline.jobs import STAGES, Queue, Stage
from pipeline.settings import Settings, settings
from pipeline.storage import StorageError, storage
from webhooks import outbound
from workers import ingest, measuring, scratch, timetable
from workers.app import app, delivering, wake
from workers.queues import queue_of

log = logging.getLogger(__name__)

WAKE_AT_MOST = 500


@app.task(name="unmask.sweep", acks_late=False)
def sweep() -> int:
    """Take back the jobs of workers that died; returns how many are queued again."""
    chosen = settings()
    swept = ledger.sweep(database(chosen.database), max_attempts=chosen.max_attempts)
    if swept:
        log.warning("%d jobs of dead or stalled workers are queued again", len(swept))
        wake_due(database(chosen.database), chosen)
    return len(swept)


@app.task(name="unmask.wake", acks_late=False)
def wake_waiting() -> int:
    """Wake jobs whose message is lost or whose wait after a failure is over; returns how many."""
    chosen = settings()
    return wake_due(database(chosen.database), chosen)


def wake_due(db: Database, chosen: Settings) -> int:
    """Wake as many due jobs as there are queued jobs without a message, those known to have none first.

    A long backlog is not a loss: as long as the broker holds a message for each queued job, nobody is woken twice. Each
    urgency and stage is looked at by itself, so that an upload whose message is lost waits neither behind a back-fill nor
    for the messages that another stage has too many of.
    """
    backlog = inquiry.backlog(db)
    if not backlog:
        return 0
    woken, held = 0, _messages()
    for queue in Queue:
        missing = sum(
            max(0, number - _messages_for(stage, kind, backlog, held)) for (stage, kind), number in backlog.items() if kind is queue
        )
        if missing <= 0:
            continue
        due = ledger.due(db, wake_after_s=chosen.wake_after_s, limit=min(missing, WAKE_AT_MOST), queue=queue)
        unsent = [job_id for job_id, stage, kind in due if not wake(job_id, stage, kind)]
        if unsent:
            ledger.unwoken(db, unsent)
        woken += len(due) - len(unsent)
    return woken


def _messages_for(stage: Stage, kind: Queue, backlog: Mapping[tuple[Stage, Queue], int], held: Mapping[tuple[Stage, Queue], int]) -> int:
    """How many messages there are for the queued jobs of a kind: in its own line, and in the one where those go that were begun."""
    above = kind.line(1)
    spare = max(0, held[stage, above] - backlog.get((stage, above), 0)) if above is not kind else 0
    return held[stage, kind] + spare


def _messages() -> dict[tuple[Stage, Queue], int]:
    """How many wake-ups wait in the broker, by stage and urgency."""
    lines = [(stage, queue) for stage in STAGES for queue in Queue]
    with cast(Any, app.pool).acquire(block=True) as connection, connection.default_channel.client.pipeline(transaction=False) as asked:
        for stage, queue in lines:
            asked.llen(queue_of(stage, queue))
        return dict(zip(lines, map(int, asked.execute()), strict=True))


_listing = Lock()
_listed_to: dict[str, str] = {}


@app.task(name="unmask.reconcile", acks_late=False)
def reconcile() -> int:
    """List the inboxes for uploads whose event was lost; a large one in several parts. Returns how many were found."""
    chosen = settings()
    if not _listing.acquire(blocking=False):
        return 0  # the run before is not through yet
    try:
        found = ingest.reconcile_all(database(chosen.database), storage(chosen), chosen, _listed_to, budget_s=chosen.reconcile_s / 2)
    finally:
        _listing.release()
    if found:
        log.warning("%d uploads were found whose event had been lost", found)
    return found


@app.task(name="unmask.deliver", acks_late=False)
def deliver() -> int:
    """Send the webhooks that are due; returns how many were tried."""
    delivering()
    chosen = settings()
    return outbound.deliver_due(database(chosen.database), chosen)


@worker_shutdown.connect
def land(**_: Any) -> None:
    """Wait for the answers to webhooks that are in the air, so that they are written down and nothing is sent twice."""
    if not outbound.drain():
        log.warning("some webhooks are still in the air: they will be sent again, with the same ids")


@app.task(name="unmask.tidy", acks_late=False)
def tidy() -> int:
    """Remove forgotten working copies, checkpoints of trainings that nobody will go on with, and old events; returns how many."""
    chosen = settings()
    db = database(chosen.database)
    removed = scratch.tidy(chosen) + timetable.tidy(db, chosen)
    events = pruning.prune(db, older_s=chosen.events_kept_s) if chosen.events_kept_s else 0
    if events:
        log.info("%d old webhook events are forgotten, with their deliveries", events)
    return removed + events


@app.task(name="unmask.train_upkeep", acks_late=False)
def look_after_trainings() -> int:
    """Fire due schedules, take back trainings of workers that died, wake those that wait; returns how many were woken."""
    chosen = settings()
    return timetable.look_after(database(chosen.database), chosen)


@app.task(name="unmask.collect", acks_late=False)
def collect() -> int:
    """Put the faces whose label was accepted into the data set; returns how many labels were looked at."""
    chosen = settings()
    try:
        return collections.collect(database(chosen.database), storage(chosen), chosen)
    except StorageError as error:
        log.warning("The pictures of labelled faces could not be fetched: %s", error)
        return 0


@app.task(name="unmask.drift", acks_late=False)
def look_for_drift() -> int:
    """Compare the days that are over with the hold-out, and have the schedules fire that wait for drift; returns the alarms.

    A champion that was not measured on the hold-out is measured meanwhile, for the next time.
    """
    chosen = settings()
    db = database(chosen.database)
    days = drift.look(db, chosen)
    for day in days:
        log.warning("What came in on %s is not distributed as the hold-out is", day)
    for day, found_at in drift.findings(db).items():
        for training_id in schedules.fire_on_drift(db, slot=drift.slot_of(day), found_at=found_at):
            timetable.wake(db, training_id)
    measuring.begin(db, chosen)
    return len(days)
