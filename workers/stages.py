"""The three tasks of the chain. Each takes a job id, claims the stage, does it, and hands the job on.

A message is only a hint that the stage may be due. If the job is further on already, the chain goes on; if somebody else
has it, or it is over, the message is dropped. Start workers with `celery -A workers.stages worker`.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import wait
from threading import Thread
from typing import Any

import cv2
import numpy as np
from celery.exceptions import Ignore, SoftTimeLimitExceeded
from celery.signals import worker_process_init, worker_ready

from pipeline import extraction, faults, images, inboxes, ledger, outbox, rendering, results
from pipeline.card import ModelError
from pipeline.database import Database, database
from pipeline.images import ImageRefused, Limits, Picture
from pipeline.jobs import STAGES, Box, Judgement, Stage, Status, Verdict
from pipeline.ledger import Claim
from pipeline.settings import Settings, settings
from pipeline.storage import ObjectTooLarge, SourceGone, storage
from workers import scratch
from workers.allocation import keep_memory
from workers.app import app, deliver_soon
from workers.bereavement import Bereaved
from workers.champion import champion, judge
from workers.confines import confined
from workers.lease import Lease, LeaseLost
from workers.queues import queues
from workers.shadowing import the_shadow
from workers.tether import tie

log = logging.getLogger(__name__)

Work = Callable[[Database, Settings, Claim, Lease], bool]
"""Does one stage and writes it to the ledger; False: the claim was lost meanwhile."""


class NotInTime(Exception):
    """The judge did not answer in time. Not TimeoutError, which is also what a network file system raises."""


class _Stage(app.Task):  # type: ignore[name-defined, misc]
    """What the tasks of all stages have in common."""

    Request = Bereaved
    """Sees to it that a job whose process died goes on at once."""
    max_retries = 3
    """Where the ledger could not be told, the message comes again, but after so many killed processes in a row no more."""

    @property
    def default_retry_delay(self) -> float:
        """Later than the dead worker's lease, so that the job can be had again."""
        return settings().lease_s + settings().sweep_s


@app.task(base=_Stage, name="unmask.extract")
def extract(job_id: str) -> None:
    """Fetch, decode, find faces, measure them and cut them out."""
    _perform(job_id, Stage.EXTRACT, _extract)


@app.task(base=_Stage, name="unmask.classify")
def classify(job_id: str) -> None:
    """Judge the faces, in batches with other jobs'."""
    _perform(job_id, Stage.CLASSIFY, _classify)


@app.task(base=_Stage, name="unmask.render")
def render(job_id: str) -> None:
    """Draw the mesh over manipulated faces and leave picture and result in the results bucket."""
    _perform(job_id, Stage.RENDER, _render)


def _extract(db: Database, chosen: Settings, claim: Claim, lease: Lease) -> bool:
    began = time.monotonic()
    data = scratch.source(chosen, claim.job_id, claim.upload)
    picture = _decoded(chosen, claim, data)
    lease.check()
    card = champion(chosen).card()
    faces = extraction.extract(
        picture.pixels,
        detector=extraction.detector(chosen.detector, chosen.min_detection),
        size=card.input_size,
        margin=card.margin,
        min_face_px=chosen.min_face_px,
        min_blur=chosen.min_blur,
        max_blocks=chosen.max_blocks,
    )
    faults.point("detected", claim.upload.key)
    scratch.keep_pixels(chosen, claim.job_id, picture.sha256, picture.pixels)
    took = _milliseconds(began)
    size = {"width": picture.width, "height": picture.height}
    return ledger.extracted(db, claim, sha256=picture.sha256, **size, faces=faces, milliseconds=took)


def _decoded(chosen: Settings, claim: Claim, data: bytes) -> Picture:
    with confined(chosen.decode_limit_s, chosen.decode_limit_bytes):
        faults.point("decode", claim.upload.key)
        picture = images.read(data, Limits.of(chosen))
    faults.point("decoded", claim.upload.key)
    return picture


def _classify(db: Database, chosen: Settings, claim: Claim, lease: Lease) -> bool:
    began = time.monotonic()
    faces = [face for face in ledger.faces(db, claim.job_id, crops=True) if face.crop is not None]
    for _ in range(3):
        answer = judge(chosen).submit([face.crop for face in faces if face.crop is not None])
        if not wait([answer], chosen.stage_limit_s).done:
            raise NotInTime
        judged = answer.result()
        models = {model for _, _, model in judged}
        if len(models) <= 1:
            break  # else the champion changed between two batches of the same picture
    say = inboxes.get(chosen, db, claim.inbox).verdict
    judgements = [Judgement(face.index, score, say(score, verdict)) for face, (score, verdict, _) in zip(faces, judged, strict=True)]
    faults.point("classified", claim.upload.key)
    lease.check()
    written = ledger.classified(db, claim, judgements, judged[0][2], _milliseconds(began))
    if written:
        the_shadow(chosen).offer(claim.job_id, faces, judgements, judged[0][2])
    return written


def _render(db: Database, chosen: Settings, claim: Claim, lease: Lease) -> bool:
    began = time.monotonic()
    job, faces = results.judged(db, claim.job_id)
    pixels = scratch.pixels(chosen, claim.job_id, job.sha256)
    if pixels is None:
        picture = _decoded(chosen, claim, scratch.source(chosen, claim.job_id, claim.upload))
        if picture.sha256 != job.sha256:
            raise SourceGone(f"{job.bucket}/{job.key} was replaced before its result could be drawn.")
        pixels = picture.pixels
    boxes = [Box(face.x, face.y, face.w, face.h) for face in faces if face.verdict == Verdict.MANIPULATED.value]
    drawn = rendering.render(pixels, boxes, rendering.MeshStyle.of(chosen))
    faults.point("rendered", claim.upload.key)
    annotated = images.encode_png(drawn, chosen.png_level)
    place = inboxes.effective(chosen, db, claim.inbox)
    annotated_key, result_key = (name(place, job.key, job.id) for name in (results.annotated_key, results.result_key))
    lease.check()
    store = storage(chosen)
    store.put(place.results_bucket, annotated_key, annotated, "image/png")
    took = _milliseconds(began)
    timings = {**claim.timings_ms, "render": took}
    content = results.document(job, faces, place, timings_ms=timings, finished_at=time.time())
    store.put(place.results_bucket, result_key, results.encoded(content), "application/json")
    return ledger.finished(db, claim, annotated_key=annotated_key, result_key=result_key, milliseconds=took)


# -- around the work


def _perform(job_id: str, stage: Stage, work: Work) -> None:
    chosen = settings()
    db = database(chosen.database)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    claim = ledger.claim(db, job_id, stage, worker=worker, lease_s=chosen.lease_s, max_attempts=chosen.max_attempts)
    if claim is None:
        if _further_on(db, job_id, stage):
            return
        log.info("job %s is not to be had for %s", job_id, stage.value)
        raise Ignore
    faults.point(f"{stage.value}.claimed", claim.upload.key)
    began = time.monotonic()
    try:
        with Lease(db, claim, chosen.lease_s) as lease:
            held = work(db, chosen, claim, lease)
    except LeaseLost:
        held = False
    except Exception as error:
        _note(db, chosen, claim, error)
        raise Ignore from error
    if not held:
        log.info("job %s was taken away during %s", job_id, stage.value)
        raise Ignore
    faults.point(f"{stage.value}.committed", claim.upload.key)
    log.info("job %s: %s is done, %.0f ms after it was begun", job_id, stage.value, _milliseconds(began))
    if stage is Stage.RENDER:
        _over(chosen, job_id)


def _further_on(db: Database, job_id: str, stage: Stage) -> bool:
    place = ledger.position(db, job_id)
    return place is not None and place[0] is Status.QUEUED and STAGES.index(place[1]) > STAGES.index(stage)


def _note(db: Database, chosen: Settings, claim: Claim, error: Exception) -> None:
    """Write down what went wrong, and with it whether the stage is tried again."""
    over = True
    if isinstance(error, ImageRefused | ObjectTooLarge):
        ledger.refuse(db, claim, str(error))
    elif isinstance(error, SourceGone):
        ledger.source_gone(db, claim, str(error))
    else:
        permanent, sentence = _verdict_on(error, claim.stage, chosen)
        log.warning("job %s, %s, attempt %d: %s", claim.job_id, claim.stage.value, claim.attempt, sentence, exc_info=error)
        status = ledger.retry(db, claim, error, max_attempts=chosen.max_attempts, permanent=permanent, sentence=sentence)
        over = status.terminal
    if over:
        _over(chosen, claim.job_id)


def _verdict_on(error: Exception, stage: Stage, chosen: Settings) -> tuple[bool, str]:
    """Whether it is useless to try again, and one sentence for the user."""
    if isinstance(error, SoftTimeLimitExceeded | NotInTime):
        return False, f"The {stage.value} stage took longer than {chosen.stage_limit_s:g} s."
    if isinstance(error, MemoryError):
        return False, f"There was not enough memory for the {stage.value} stage."
    if isinstance(error, ModelError):  # the model's fault, not the job's: another one may be champion in a moment
        return False, str(error)
    if hasattr(error, "permanent"):
        return bool(error.permanent), str(error)
    return False, f"The {stage.value} stage failed unexpectedly ({type(error).__name__})."


def _over(chosen: Settings, job_id: str) -> None:
    scratch.drop(chosen, job_id)
    if outbox.heard(database(chosen.database)):
        deliver_soon()


def _milliseconds(since: float) -> float:
    return round((time.monotonic() - since) * 1000, 1)


# -- warm before the first image comes


@worker_process_init.connect
def _child_starts(**_: Any) -> None:
    tie()
    keep_memory()
    cv2.setNumThreads(1)  # its threads spin while they wait for each other, and the pool's processes share the cores
    _warm()


@worker_ready.connect
def _worker_starts(sender: Any, **_: Any) -> None:
    if not sender.pool.signal_safe:  # a pool of threads: this is the process that will do the work
        Thread(target=_warm, name="warm-up", daemon=True).start()


def _warm() -> None:
    """Load what the stages of this worker need, so that the first image does not wait for it."""
    chosen, own = settings(), set(app.amqp.queues.consume_from)
    blank = np.zeros((256, 256, 3), np.uint8)
    try:
        storage(chosen)
        if own & set(queues(Stage.EXTRACT)):
            extraction.detector(chosen.detector, chosen.min_detection)(blank)
        if own & set(queues(Stage.RENDER)):
            rendering.landmarks(blank, Box(64, 64, 128, 128))
        if own & set(queues(Stage.CLASSIFY)):
            judge(chosen).submit([blank]).result()
    except Exception as error:
        log.warning("Warming up failed, the first image will have to wait: %s", error)
