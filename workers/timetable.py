"""What has to be done for trainings again and again. May run late, twice or in several places at once, as all of upkeep may."""

from __future__ import annotations

import logging
from typing import Any, cast

from pipeline import classroom, schedules, trainings
from pipeline.database import Database
from pipeline.jobs import Status
from pipeline.settings import Settings
from pipeline.storage import storage
from workers import keeping
from workers.app import app, wake_training
from workers.queues import TRAIN

log = logging.getLogger(__name__)

FORSAKEN_S = 30 * 86_400.0
"""A training that failed or was cancelled can go on from its checkpoint for so long."""


def look_after(db: Database, settings: Settings) -> int:
    """Fire due schedules, take back trainings of workers that died, wake those that wait; returns how many were woken.

    As long as the broker holds a message for each queued training, nobody is woken twice: some wait for days.
    """
    fired = schedules.fire_due(db)
    if swept := trainings.sweep(db, max_attempts=settings.train_max_attempts):
        log.warning("%d trainings of dead or stalled workers are queued again", len(swept))
    woken = sum(wake(db, training_id) for training_id in fired)
    queued = classroom.counts(db)[Status.QUEUED.value]
    if queued and (missing := queued - _messages()) > 0:
        woken += sum(wake(db, training_id) for training_id in trainings.due(db, wake_after_s=settings.wake_after_s, limit=missing))
    return woken


def wake(db: Database, training_id: str) -> bool:
    """Send a training on its way; where the broker does not take the message, the next upkeep does it."""
    if wake_training(training_id):
        return True
    trainings.unwoken(db, training_id)
    return False


def tidy(db: Database, settings: Settings, *, after_s: float = FORSAKEN_S) -> int:
    """Delete what was kept of trainings that nobody will go on with; returns of how many. What could not be is tried again next time."""
    gone = 0
    for training_id, fence in trainings.forsaken(db, after_s=after_s):
        # somebody may retry it at any moment: what is stored then has a later fence, and stays
        later = f"{keeping.home(training_id)}{fence + 1:06}"
        if keeping.forget(storage(settings), settings, training_id, before=later):
            gone += trainings.forgotten(db, training_id, fence)
    return gone


def _messages() -> int:
    with cast(Any, app.pool).acquire(block=True) as connection:
        return int(connection.default_channel.client.llen(TRAIN))
