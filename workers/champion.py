"""The champion model as a worker process sees it: looked up at most every few seconds, loaded when it changes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cache
from threading import Lock

import numpy as np

from pipeline import classification, images, registry
from pipeline.batching import Batcher
from pipeline.card import Card, ModelError
from pipeline.classification import Classifier
from pipeline.database import Database, database
from pipeline.jobs import ModelName, Pixels, Verdict
from pipeline.settings import Settings
from pipeline.storage import storage

log = logging.getLogger(__name__)

CHECK_S = 3.0
"""How old the knowledge of who is champion may be."""
AGAIN_S = 30.0
"""When to try again to load a champion that could not be loaded, while the one before it goes on judging."""

Judged = tuple[float, Verdict, ModelName]
"""Calibrated score, verdict, and who judged."""


class Champion:
    """The champion's card, and its classifier, as of at most `CHECK_S` seconds ago. Each is used by one thread at a time."""

    def __init__(self, db: Database, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._settings = settings
        self._clock = clock
        self._checked = -CHECK_S
        self._name: tuple[str, str] | None = None
        self._card: Card | None = None
        self._loaded: tuple[tuple[str, str], Classifier] | None = None
        self._failed: tuple[tuple[str, str], float] | None = None
        """Which champion could not be loaded, and when to try it again; no other one waits."""

    def card(self) -> Card:
        """Its card. Raises ModelError while there is no champion."""
        name = self._who()
        if self._card is None or (self._card.name, self._card.version) != name:
            self._card = registry.card(self._db, *name)
        return self._card

    def classifier(self) -> Classifier:
        """It itself, loaded; or the one before, if it cannot be loaded or may not be. Raises ModelError if there is neither."""
        try:
            name = self._who()
        except ModelError:
            if self._loaded is None:
                raise
            return self._loaded[1]
        if self._loaded is not None and (self._loaded[0] == name or self._waits(name)):
            return self._loaded[1]
        try:
            fresh = self._fetched(name)
        except ModelError as error:
            if self._loaded is None:
                # a process that has just started has none, and what was altered will be so in the next one, too
                before = registry.former(self._db) if error.permanent else None
                if before is None:
                    raise
                self._loaded = (before, self._fetched(before))
            log.error("The champion %s %s cannot be used, %s %s goes on: %s", *name, *self._loaded[0], error)
            self._failed = (name, self._clock() + AGAIN_S)
            return self._loaded[1]
        log.info("The champion is %s %s, in %s.", *name, fresh.precision)
        self._loaded, self._failed = (name, fresh), None
        return fresh

    def _waits(self, name: tuple[str, str]) -> bool:
        return self._failed is not None and self._failed[0] == name and self._clock() < self._failed[1]

    def _fetched(self, name: tuple[str, str]) -> Classifier:
        folder = registry.fetch(self._db, storage(self._settings), self._settings, *name)
        return classification.load(folder, runtime=self._settings.runtime, precision=self._settings.precision)

    def _who(self) -> tuple[str, str]:
        if self._name is None or self._clock() - self._checked >= CHECK_S:
            self._name = registry.champion(self._db)
            self._checked = self._clock()
        return self._name


class Judge:
    """Judges crops of many callers in common batches, always by the present champion."""

    def __init__(self, champion: Champion, *, batch_max: int, batch_wait_s: float) -> None:
        self._champion = champion
        self._batcher: Batcher[Pixels, Judged] = Batcher(self._run, max_items=batch_max, max_wait_s=batch_wait_s)

    def submit(self, crops: Sequence[Pixels]) -> Future[list[Judged]]:
        """Ask for (s, s, 3) uint8 RGB crops to be judged; the answer is in the same order."""
        return self._batcher.submit(crops)

    def close(self) -> None:
        """Judge what was asked for, then stop."""
        self._batcher.close()

    def _run(self, crops: list[Pixels]) -> list[Judged]:
        classifier = self._champion.classifier()
        size = classifier.card.input_size
        # Only crops made just before a champion of another input size took over are of another size.
        judged = classifier.judge(np.stack([images.resize(crop, size, size) for crop in crops]))
        return [(score, verdict, classifier.name) for score, verdict in judged]


def champion(settings: Settings) -> Champion:
    """The process's own, for its cards."""
    return _champion(settings, os.getpid())


def judge(settings: Settings) -> Judge:
    """The process's one judge, with a thread and a model of its own."""
    with _making:
        return _judge(settings, os.getpid())


_making = Lock()  # @cache alone lets two threads make one each


@cache
def _champion(settings: Settings, pid: int) -> Champion:
    return Champion(database(settings.database), settings)


@cache
def _judge(settings: Settings, pid: int) -> Judge:
    own = Champion(database(settings.database), settings)
    return Judge(own, batch_max=settings.batch_max, batch_wait_s=settings.batch_wait_ms / 1000)
