"""The worker that owns cards: takes one training at a time, starts the trainer on them, and looks after it until it ends.

Start with `celery -A workers.train worker -n train@%h -Q train -P prefork -c 1 --max-tasks-per-child 1`. It never imports TensorFlow.
Messages are acknowledged early: a training lasts for hours, and it is the database that knows whether somebody is at it. SIGTERM has
the trainer leave a checkpoint and gives the training back.
"""

from __future__ import annotations

import logging
import mmap
import os
import shutil
import socket
from contextlib import suppress
from typing import Any

from celery.signals import worker_process_init, worker_ready, worker_shutting_down

from pipeline import cards, classroom, gaudi, trainings
from pipeline.cards import CardError, Group
from pipeline.changes import traceback_of
from pipeline.database import Database, database
from pipeline.jobs import Status
from pipeline.settings import Settings, settings
from pipeline.storage import storage
from pipeline.trainings import Claim
from workers.app import app, deliver_soon, wake_training
from workers.course import Course, Stopped
from workers.environments import interpreter
from workers.holding import Hold, HoldLost
from workers.tether import tie

log = logging.getLogger(__name__)

EVER_S = 400 * 86_400
"""Celery's time limits are for images."""
_ending = mmap.mmap(-1, 1)
"""One byte that the worker and its children share: 1 once the worker was asked to end. Nobody can die while holding a lock on it."""


@app.task(name="unmask.train", acks_late=False, reject_on_worker_lost=False, time_limit=EVER_S, soft_time_limit=EVER_S, max_retries=0)
def train(training_id: str) -> None:
    """Take a training and go on with it, if it is to be had."""
    chosen = settings()
    run(database(chosen.database), chosen, training_id)


def run(db: Database, chosen: Settings, training_id: str) -> Status | None:
    """Claim the training and the cards, and go on to its end, or until it breaks off. Where it stands then; None: it was not to be had."""
    worker = f"{socket.gethostname()}:{os.getpid()}"
    if ending():
        return None
    try:
        group = own_group(chosen)
        lease = cards.acquire(
            db,
            group,
            holder=worker,
            training=training_id,
            lease_s=chosen.lease_s,
            locks=chosen.cards_dir,
            machine=chosen.train_machine or None,
        )
    except CardError as error:
        log.warning("training %s: %s", training_id, error)
        if not error.permanent:
            trainings.postpone(db, training_id, min(chosen.lease_s / 2, 10.0), str(error))
            return None
        claim = trainings.claim(db, training_id, worker=worker, lease_s=chosen.lease_s, max_attempts=chosen.train_max_attempts)
        return None if claim is None else _broken(db, chosen, claim, error)
    try:
        claim = trainings.claim(
            db, training_id, worker=worker, lease_s=chosen.lease_s, max_attempts=chosen.train_max_attempts, cards=str(group)
        )
        if claim is None:
            log.info("training %s is not to be had", training_id)
            return None
        log.info("training %s: run %d, phase %s, on %s", training_id, claim.run, claim.phase, group)
        try:
            with Hold(db, claim, lease, chosen.lease_s) as hold:
                _fitting(claim, group)
                Course(db, storage(chosen), chosen, claim, hold, lease, _python(chosen), ending).run()
        except HoldLost:
            return None
        except Stopped:
            trainings.suspend(db, claim)
            return Status.QUEUED
        except Exception as error:
            return _broken(db, chosen, claim, error)
        return Status.DONE
    finally:
        cards.release(db, lease)


def own_group(chosen: Settings) -> Group:
    """The cards of this worker. Raises CardError, one sentence that says what is missing: no other device is taken instead."""
    if chosen.train_device == "hpu":
        return gaudi.preflight(chosen.train_cards, chosen.device_root)[0]
    return cards.group(chosen.train_device, chosen.train_cards or "0")


def ending() -> bool:
    """Whether this worker has been asked to end."""
    return _ending[0] == 1


def _fitting(claim: Claim, group: Group) -> None:
    if claim.device != group.device:
        raise CardError(
            f"The training asks for {claim.device}, and this worker has {group.device}: set UNMASK_TRAIN_DEVICE of a worker to it."
        )


def _python(chosen: Settings) -> str:
    found = interpreter(chosen)
    if found is None:
        said = (
            f"UNMASK_TRAIN_PYTHON is {chosen.train_python}, which is no program" if chosen.train_python else "There is no TensorFlow here"
        )
        raise CardError(f"{said}: run `make train-environment`, or set UNMASK_TRAIN_PYTHON.")
    return found


def _broken(db: Database, chosen: Settings, claim: Claim, error: Exception) -> Status | None:
    """Write down what went wrong, and with it whether it is tried again."""
    permanent = bool(getattr(error, "permanent", False))
    known = hasattr(error, "permanent")
    sentence = str(error) if known else f"The training failed unexpectedly ({type(error).__name__})."
    log.warning("training %s, attempt %d: %s", claim.training_id, claim.attempt, sentence, exc_info=None if known else error)
    said = getattr(error, "said", "")
    status = trainings.retry(
        db,
        claim,
        sentence,
        permanent=permanent,
        max_attempts=chosen.train_max_attempts,
        first_wait_s=chosen.train_retry_s,
        error=said or traceback_of(error),
    )
    if status is Status.FAILED:
        deliver_soon()
    return status


@worker_shutting_down.connect
def _shutting_down(**_: Any) -> None:
    _ending[0] = 1


@worker_process_init.connect
def _tied(**_: Any) -> None:
    tie()  # a pool process whose worker was killed must not go on


@worker_ready.connect
def _look_for_work(**_: Any) -> None:
    """Say what is missing as soon as the worker is up, and take up again what waits."""
    chosen = settings()
    for problem in problems(chosen):
        log.error("%s", problem)
    db = Database(chosen.database)  # of this moment only: nothing is left open in the process that children are forked from
    with suppress(Exception):
        clear_away(db, chosen)
    with suppress(Exception):  # the next upkeep does it
        for training_id in trainings.due(db, wake_after_s=0.0, limit=1):
            wake_training(training_id)
    db.dispose()


def clear_away(db: Database, chosen: Settings) -> list[str]:
    """Remove this machine's folders of trainings that are done, here or elsewhere, or that nobody will go on with; returns their ids."""
    removed = []
    for folder in chosen.trainings_dir.glob("trn_*"):
        row = classroom.one(db, folder.name)
        # upkeep has forgotten the runs of those that failed or were cancelled long ago
        forsaken = row is not None and row.runs == 0 and row.finished_at is not None
        if row is None or row.status == Status.DONE.value or forsaken:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    return removed


def problems(chosen: Settings) -> list[str]:
    """What keeps this worker from training, in sentences."""
    found = []
    try:
        own_group(chosen)
    except CardError as error:
        found.append(str(error))
    try:
        _python(chosen)
    except CardError as error:
        found.append(str(error))
    return found
