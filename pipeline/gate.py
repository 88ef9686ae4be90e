"""The gate: a candidate takes over from the champion only if it is not worse on faces that neither was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pipeline.database import Database
from pipeline.settings import Settings
from pipeline.storage import Storage


class GateError(Exception):
    """A candidate could not be considered at all. `permanent`: considering it again changes nothing."""

    def __init__(self, sentence: str, *, permanent: bool = True) -> None:
        super().__init__(sentence)
        self.permanent = permanent


class Outcome(str, Enum):
    """What became of a candidate."""

    PROMOTED = "promoted"
    """It passed, and is champion."""
    WAITING = "waiting"
    """A person decides: it passed and promotion is by hand, or only pinned verdicts flip, or there is no hold-out to measure it on."""
    REFUSED = "refused"
    """It is worse; it stays a candidate, with the reasons."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it holds, and a sentence that says so with the numbers."""

    name: str
    passed: bool
    sentence: str


@dataclass(frozen=True)
class Decision:
    """What was decided about a candidate, and why. `picture`: key of a PNG in the models bucket, empty if nothing was measured."""

    id: str
    name: str
    version: str
    outcome: Outcome
    checks: tuple[Check, ...]
    picture: str
    training_id: str

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentences of what did not hold."""
        return tuple(check.sentence for check in self.checks if not check.passed)


def consider(db: Database, store: Storage, settings: Settings, folder: Path, *, training_id: str) -> Decision:
    """Publish the version in `folder` as the candidate, measure it against the champion on the hold-out, and decide.

    Doing it again for a version that was decided on gives the same decision. Raises ModelError for a folder that is no
    version, GateError, StorageError.
    """
    raise GateError("Candidates cannot be considered yet.")
