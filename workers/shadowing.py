"""The model in the shadow as a classifying process sees it: scores a share of the jobs after their results are written.

It has a thread of its own that the system runs only when nothing else wants the processor, one thread of inference, a short queue
that drops what does not fit, and no part in any result. Whatever goes wrong here is logged and forgotten.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from queue import Full, Queue

import numpy as np

from pipeline import classification, images, registry, shadow
from pipeline.card import ModelError
from pipeline.classification import Classifier
from pipeline.database import Database, database
from pipeline.jobs import Face, Judgement, ModelName
from pipeline.settings import Settings
from pipeline.shadow import Pair, Shadowing
from pipeline.storage import storage

log = logging.getLogger(__name__)

CHECK_S = 10.0
"""How old the knowledge of what is in the shadow may be."""
AGAIN_S = 60.0
"""When to try again to load a model that could not be loaded."""
MOST_JOBS = 16
"""So many jobs wait at most; others are not scored."""
LEAST_NICE = 19

Job = tuple[str, Sequence[Face], Sequence[Judgement], str]


class Shadow:
    """Scores what it is offered, on a thread of its own. `close` lets it finish what waits."""

    def __init__(self, db: Database, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._settings = settings
        self._clock = clock
        self._checked = -CHECK_S
        self._current: Shadowing | None = None
        self._loaded: tuple[str, Classifier] | None = None
        self._failed: tuple[str, float] | None = None
        """What could not be loaded, by the id of its time in the shadow, and when to try it again; nothing else waits."""
        self._jobs: Queue[Job | None] = Queue(MOST_JOBS)
        self._thread: threading.Thread | None = None
        self._making = threading.Lock()
        self.cpu_s = 0.0
        """CPU time spent by the thread itself so far, inference in its pool aside."""

    def offer(self, job_id: str, faces: Sequence[Face], judgements: Sequence[Judgement], model: ModelName) -> bool:
        """Have a judged job scored as well, perhaps. Returns at once, never raises; False: not this one."""
        try:
            current = self._who()
            if current is None or (model.name, model.version) == (current.name, current.version) or not chosen(job_id, current.share):
                return False
            self._start()
            self._jobs.put_nowait((job_id, faces, judgements, model.version))
        except Full:
            return False
        except Exception as error:
            log.warning("The shadow is left out: %s", error)
            return False
        return True

    def close(self) -> None:
        """Score what waits, then end the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()

    def _who(self) -> Shadowing | None:
        if self._clock() - self._checked >= CHECK_S:
            self._checked = self._clock()  # first, so that a database that is away is not asked for every job
            self._current = shadow.current(self._db)
            if self._current is None:
                self._loaded = None
        return self._current

    def _start(self) -> None:
        with self._making:
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="shadow", daemon=True)
                self._thread.start()

    def _loop(self) -> None:
        with suppress(OSError, AttributeError):  # on Linux a thread has a niceness of its own, and those it makes inherit it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_NICE)
        while (job := self._jobs.get()) is not None:
            try:
                self._score(job)
            except Exception as error:
                log.warning("The shadow did not score job %s: %s", job[0], error)
            self.cpu_s = time.thread_time()

    def _score(self, job: Job) -> None:
        job_id, faces, judgements, champion = job
        current = self._current
        classifier = None if current is None else self._classifier(current)
        if current is None or classifier is None:
            return
        said = {one.index: one for one in judgements if one.score is not None}
        own = [face for face in faces if face.crop is not None and face.index in said]
        size = classifier.card.input_size
        judged = classifier.judge(np.stack([images.resize(face.crop, size, size) for face in own if face.crop is not None]))
        pairs = [
            Pair(job_id, face.index, said[face.index].score or 0.0, said[face.index].verdict.value, champion, score, verdict.value)
            for face, (score, verdict) in zip(own, judged, strict=True)
        ]
        shadow.record(self._db, current.id, pairs)

    def _classifier(self, current: Shadowing) -> Classifier | None:
        if self._loaded is not None and self._loaded[0] == current.id:
            return self._loaded[1]
        if self._failed is not None and self._failed[0] == current.id and self._clock() < self._failed[1]:
            return None
        try:
            folder = registry.fetch(self._db, storage(self._settings), self._settings, current.name, current.version)
            fresh = classification.load(folder, runtime=self._settings.runtime, precision=self._settings.precision, threads=1)
        except ModelError as error:
            log.warning("%s %s cannot be put into the shadow: %s", current.name, current.version, error)
            self._failed = (current.id, self._clock() + AGAIN_S)
            return None
        self._loaded, self._failed = (current.id, fresh), None
        return fresh


def chosen(job_id: str, share: float) -> bool:
    """Whether a job is among the share that is scored: always the same ones."""
    return int.from_bytes(hashlib.blake2b(job_id.encode(), digest_size=8).digest(), "big") < share * 2**64


def the_shadow(settings: Settings) -> Shadow:
    """The process's one."""
    return _shadow(settings, os.getpid())


@cache
def _shadow(settings: Settings, pid: int) -> Shadow:
    return Shadow(database(settings.database), settings)
