"""One training taken through its phases by the worker that has claimed it: train, make a version of the weights, have it judged.

TensorFlow is in the trainer's process alone. What that says comes in a file of JSON lines; each checkpoint that it writes is stored
in the models bucket at once; whatever ends it, and us, the training goes on from the last one stored, here or elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from pipeline import cards, classroom, gate, options, registry, trainings
from pipeline.cards import CardLease
from pipeline.database import Database
from pipeline.settings import Settings
from pipeline.storage import Storage, StorageError
from pipeline.trainings import Claim
from workers import keeping, launching, material
from workers.environments import CODE
from workers.exclusion import locked_within
from workers.holding import Hold
from workers.launching import CHECKPOINT_FILES, Launch, Outcome
from workers.watching import Watch

log = logging.getLogger(__name__)

AGAIN_S = 5.0
"""After how long a database or store that did not answer is asked again."""
ORPHANS_S = 20.0
"""How long the trainer of a worker that died may take to vanish."""
HOLD_S = 30.0
"""How long a trainer waits with a checkpoint for our word that it is stored, before it goes on without."""
RELEASE_STALLS = 6
"""What makes a version may say nothing for so many times as long as a trainer: it speaks only when one of its parts is done."""
NICE = 10
"""A trainer on the CPU lets everything else on the machine go first."""
RESULTS = ("weights.h5", "training.json", "curve.json", "curve.png")
START = "start.h5"
NAME = "unmask-resnet50"


class CourseError(Exception):
    """The trainer, or what makes a version, ended without success. `permanent`: it would again."""

    def __init__(self, sentence: str, *, permanent: bool = False, said: str = "") -> None:
        super().__init__(sentence)
        self.permanent = permanent
        self.said = said


class Stopped(Exception):
    """The worker is ending; the checkpoint is stored, and another worker may go on."""


class Course:
    """A claimed training on a group of cards. `stopping`: whether the worker has been asked to end."""

    def __init__(
        self,
        db: Database,
        storage: Storage,
        settings: Settings,
        claim: Claim,
        hold: Hold,
        lease: CardLease,
        python: str,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._db, self._storage, self._settings = db, storage, settings
        self._claim, self._hold, self._lease, self._python, self._stopping = claim, hold, lease, python, stopping
        self.folder = (settings.trainings_dir / claim.training_id).absolute()
        self._settled = dict(claim.settled)
        self._stored = 0
        self._mark: tuple[int, int] | None = None
        self._read = 0
        self._untold: list[dict[str, Any]] = []
        self._not_before = 0.0
        self._watch = Watch(self.folder, stopping, settings.train_stop_s)

    def run(self) -> None:
        """Go on to the end. Raises Stopped, HoldLost, and what the rooms that it goes through raise, each with `permanent`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._be_alone()
        kept: Mapping[str, Any] | None = self._claim.checkpoint
        if kept is not None and not self._further_here(kept):
            keeping.restore(self._storage, self._settings, kept, self.folder)
        phase = self._claim.phase
        if phase == "train":
            found = self._material()
            self._train(found)
            self._keep(RESULTS, "results", phase="release")
            phase = "release"
        self._hold.free_cards()
        if phase == "release":
            found = self._material()
            files = self._release(found)
            self._keep(files, "version", phase="gate")
        self._decide()

    # -- what there is to begin with

    def _be_alone(self) -> None:
        lock = os.open(self.folder / "alive.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not locked_within(ORPHANS_S, lock, fcntl.LOCK_EX):
                raise CourseError("The trainer of an earlier attempt is still alive on this machine.")
        finally:
            os.close(lock)

    def _further_here(self, kept: Mapping[str, Any]) -> bool:
        """Whether this folder has a later checkpoint than was stored: a worker that died here had no time to."""
        here = keeping.position(self.folder) if self._claim.phase == "train" else None
        return here is not None and here >= _place(kept)

    def _material(self) -> material.Material:
        before = str(self._settled.get("dataset_sha256", ""))
        settled = {"sha256": before, "compression": str(self._claim.params.get("compression", "c23"))}
        found = material.bring(self._db, self._storage, self._settings, self._claim.dataset, self.folder / "data", **settled)
        if found.sha256 != before:
            self._settle(dataset_sha256=found.sha256)
        return found

    def _start(self) -> list[str]:
        """The weights to go on from, by a name that is the same on every worker: it is part of what a checkpoint belongs to."""
        start = self._claim.params.get("start")
        if start is None:
            return []
        if "start_version" not in self._settled:
            name, version = registry.champion(self._db) if start == options.CHAMPION else registry.find(self._db, start)
            self._settle(start_name=name, start_version=version)
        settled = self._settled
        source = registry.fetch(self._db, self._storage, self._settings, settled["start_name"], settled["start_version"]) / "weights.h5"
        if not source.is_file():
            raise CourseError(f"The model {settled['start_version']} has no weights to go on from.", permanent=True)
        shutil.copyfile(source, self.folder / START)
        return ["--weights", START]

    def _settle(self, **facts: Any) -> None:
        if not trainings.settled(self._db, self._claim, **facts):
            self._hold.lost.set()
        self._hold.check()
        self._settled.update(facts)

    # -- train

    def _train(self, found: material.Material) -> None:
        group = self._lease.group
        launch = Launch(group, self._settings.train_launcher, self._python, self._settings.device_root)
        kept, here = self._claim.checkpoint, keeping.position(self.folder)
        stored = kept is not None and here == _place(kept)
        progress = self.folder / "progress.jsonl"
        if here is None or stored:  # else it tells of steps that only this machine knows of
            progress.unlink(missing_ok=True)
        told = [
            *launching.trainer(self.folder, progress=progress, bf16=self._settings.train_bf16, hold_s=HOLD_S),
            *found.arguments(),
            *("--facts", str((self._settings.trainings_dir / "faces.npz").absolute())),
            *self._start(),
            *options.arguments(self._claim.params, hours=self._settings.train_hours),
        ]
        self._mark = keeping.mark_of(self.folder) if stored else None
        self._look()  # what a worker that died here had no time to store is stored before there are more steps
        outcome = self._watched(
            launching.command_of(launch, told),
            launching.environment_of(launch, self._environment()),
            self._look,
            stall_s=self._settings.train_stall_s,
            nice=NICE if group.device == "cpu" else 0,
        )
        self._look(last=True)
        if outcome.state == "stopped":
            if self._watch.ending(outcome):
                raise Stopped
            raise CourseError("The trainer was asked to stop by somebody else.", said=self._watch.said())
        if outcome.state == "failed":
            raise CourseError(outcome.sentence, permanent=outcome.permanent, said=self._watch.said())

    def _look(self, *, last: bool = False) -> None:
        """Keep what the trainer has told since the last look, and its checkpoint if it is another one.

        A database or a store that does not answer keeps nobody from training: it is tried again. How long we may go on without the
        database is the hold's business.
        """
        wait = time.monotonic() < self._not_before and not last
        held = None if wait else self._another_checkpoint()
        self._untold += (lines := self._lines())  # after that: what led to a checkpoint is kept before it is
        if lines or held is not None:
            self._watch.hear()
        self._hold.check()
        if wait:
            return
        try:
            if not trainings.told(self._db, self._claim, self._untold):
                self._hold.lost.set()
                self._hold.check()
            self._untold = []
            if held is not None:
                self._store(held.folder, CHECKPOINT_FILES, f"{held.stage}-{held.step}", stage=held.stage, step=held.step)
                self._mark = held.mark
                keeping.acknowledge(self.folder, held)
        except (SQLAlchemyError, StorageError) as error:
            if last or getattr(error, "permanent", False):
                raise
            log.warning("training %s: %s", self._claim.training_id, error)
            self._not_before = time.monotonic() + AGAIN_S

    def _another_checkpoint(self) -> keeping.Snapshot | None:
        mark = keeping.mark_of(self.folder)
        return None if mark is None or mark == self._mark else keeping.snapshot(self.folder)

    def _lines(self) -> list[dict[str, Any]]:
        try:
            with (self.folder / "progress.jsonl").open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]  # the last line may be half written
        self._read += len(whole)
        found = []
        for line in whole.splitlines():
            with suppress(ValueError):
                told = json.loads(line)
                if isinstance(told, dict):
                    found.append(told)
        return found

    # -- make a version

    def _release(self, found: material.Material) -> list[str]:
        version = version_of(self._claim)
        made = self.folder / "versions"
        shutil.rmtree(made, ignore_errors=True)
        params = self._claim.params
        command = [self._python, "-m", "pipeline.training.release", "--weights", str(self.folder / "weights.h5")]
        command += ["--faces", str(found.faces.absolute()), "--out", str(made), "--name", NAME, "--version", version]
        command += ["--training", str(self.folder / "training.json"), "--size", str(options.last_size(params)), "--compare"]
        command += ["--facts", str((self._settings.trainings_dir / "faces.npz").absolute())]
        command += [f"--street={params['street']}"] if "street" in params else []
        command += ["--no-grid"] if params.get("grid") is False else []

        def look() -> None:
            self._hold.check()
            self._watch.hear_log()

        stall_s = RELEASE_STALLS * self._settings.train_stall_s
        outcome = self._watched(command, self._environment(), look, what="What makes it", stall_s=stall_s, nice=NICE)
        if outcome.state != "done":
            if self._watch.ending(outcome):
                raise Stopped
            why = f"No version could be made of the weights: {outcome.sentence}"
            raise CourseError(why, permanent=outcome.permanent, said=self._watch.said())
        folder = made / NAME / version
        return [str(path.relative_to(self.folder)) for path in sorted(folder.iterdir()) if path.is_file()]

    # -- have it judged

    def _decide(self) -> None:
        if self._stopping():
            raise Stopped
        self._hold.check()
        version = version_of(self._claim)
        folder = self.folder / "versions" / NAME / version
        decision = gate.consider(
            self._db, self._storage, self._settings, folder, training_id=self._claim.training_id, provided=self._still_ours
        )
        said = json.loads(json.dumps(asdict(decision), default=str))
        said["outcome"] = decision.outcome.value
        if not trainings.finish(self._db, self._claim, name=decision.name, version=decision.version, decision=said):
            self._hold.lost.set()
            self._hold.check()
        keeping.forget(self._storage, self._settings, self._claim.training_id)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _still_ours(self, session: Session) -> None:
        """Measuring takes minutes: who has lost the training meanwhile promotes nothing."""
        if not classroom.held(session, self._claim):
            self._hold.lost.set()
            self._hold.check()

    # -- storing

    def _keep(self, names: Sequence[str], what: str, *, phase: str) -> None:
        self._store(self.folder, names, what, phase=phase)

    def _store(self, folder: Path, names: Sequence[str], what: str, *, phase: str | None = None, **place: int) -> None:
        self._stored += 1
        prefix = f"{keeping.home(self._claim.training_id)}{self._claim.fence:06}-{self._stored:06}-{what}/"
        try:
            files = keeping.store(self._storage, self._settings, prefix, folder, names, lambda _: self._watch.getting_on())
        finally:
            self._watch.hear()  # nobody listened to the trainer meanwhile
        self._hold.check()
        kept = {"prefix": prefix, "files": files, **place}
        with_cards = self._lease.descriptors != []

        def provided(session: Session) -> None:
            if with_cards:
                cards.check(session, self._lease)

        if not trainings.got_on(self._db, self._claim, kept, phase=phase, provided=provided):
            self._hold.lost.set()
            self._hold.check()
        keeping.forget(self._storage, self._settings, self._claim.training_id, before=prefix)

    # -- processes

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CODE), os.environ.get("PYTHONPATH"))))
        return environment

    def _watched(self, command: Sequence[str], environment: Mapping[str, str], look: Callable[[], None], **how: Any) -> Outcome:
        outcome = self._watch.run(command, environment, look, descriptors=self._lease.descriptors, **how)
        if outcome is None:
            raise Stopped
        return outcome


def _place(kept: Mapping[str, Any]) -> tuple[int, int]:
    """Stage and step of a checkpoint that is kept."""
    return int(kept.get("stage", 0)), int(kept.get("step", 0))


def version_of(claim: Claim) -> str:
    """The version that a training makes: its day and the end of its id, whoever works on it and whenever."""
    return f"{datetime.fromtimestamp(claim.created_at, timezone.utc):%Y.%m.%d}-{claim.training_id[-8:]}"
