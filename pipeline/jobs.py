"""The vocabulary of the house: states, verdicts and the frozen records that travel between rooms."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""An image as (height, width, 3) uint8 RGB, upright."""


class Status(str, Enum):
    """Where a job stands.

    ::

        queued ──claim──► running ──advance──► queued (next stage) … ──► done
          ▲                  │
          └──retry, sweep────┼──► refused      the input can never work; `reason` says why
                             ├──► failed       attempts used up: the dead-letter list, can be requeued
                             ├──► source_gone  the object was deleted or replaced before it was read
        queued, running ─────┴──► cancelled    a person said so
    """

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    SOURCE_GONE = "source_gone"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether nothing will happen to the job any more unless a person asks."""
        return self not in (Status.QUEUED, Status.RUNNING)


class Stage(str, Enum):
    """The three stages of the chain, in order."""

    EXTRACT = "extract"
    CLASSIFY = "classify"
    RENDER = "render"


STAGES: tuple[Stage, ...] = tuple(Stage)


class Queue(str, Enum):
    """How urgent a job is, the most urgent first: somebody waits for it; it is new; it is of old times. Each stage has one
    queue of each kind."""

    INTERACTIVE = "interactive"
    BULK = "bulk"
    BACKFILL = "backfill"

    @property
    def below(self) -> tuple[Queue, ...]:
        """What is less urgent."""
        every = tuple(Queue)
        return every[every.index(self) + 1 :]

    def of(self, stage: Stage) -> str:
        """The name of this kind's queue of a stage: `extract`, `interactive.extract` and so on."""
        return stage.value if self is Queue.BULK else f"{self.value}.{stage.value}"

    def line(self, attempts: int) -> Queue:
        """In which queue of the broker a job of this kind waits. One whose worker died after so many attempts goes before all that
        were never tried: it does not wait behind a backlog once more."""
        every = tuple(Queue)
        return every[max(0, every.index(self) - 1)] if attempts else self


class Verdict(str, Enum):
    """What is said of a face or an image. Never a bare .5: what cannot be judged is `not_applicable` with a reason."""

    MANIPULATED = "manipulated"
    UNCERTAIN = "uncertain"
    AUTHENTIC = "authentic"
    NOT_APPLICABLE = "not_applicable"


class Reason(str, Enum):
    """Why a face or an image got no verdict, in the order in which a face is looked at: the last is nearest to being judged."""

    NO_FACE = "no_face"
    FACE_TOO_SMALL = "face_too_small"
    BLURRED = "blurred"
    COMPRESSED = "compressed"


_WORST_FIRST = tuple(Verdict)


def worst(verdicts: list[Verdict]) -> Verdict:
    """The image's verdict: manipulated before uncertain before authentic before not applicable."""
    return min(verdicts, key=_WORST_FIRST.index, default=Verdict.NOT_APPLICABLE)


def nearest(reasons: Iterable[Reason | None]) -> Reason:
    """The reason of an image in which nothing was judged: of its faces' the one that came nearest to being judged (a blurred face was
    large enough)."""
    return max((reason for reason in reasons if reason is not None), key=tuple(Reason).index, default=Reason.NO_FACE)


@dataclass(frozen=True)
class Upload:
    """One object version that somebody put into an inbox, however we heard of it.

    `key` is decoded (plain UTF-8). Unknown fields are empty strings, never None, so that uniqueness holds in SQL.
    `origin` names the adapter that brought it: `seaweedfs`, `minio`, `sqs`, `sweep`, `submit`, `predict`.
    """

    bucket: str
    key: str
    version_id: str = ""
    etag: str = ""
    sequencer: str = ""
    size: int = 0
    origin: str = "submit"
    modified: float = 0.0
    """When the object was written, by the store's clock, seconds since the epoch; 0: not known. Not part of its identity."""


@dataclass(frozen=True)
class Box:
    """A face in pixels of the upright image: left, top, width, height; inside the image."""

    x: int
    y: int
    w: int
    h: int

    def as_list(self) -> list[int]:
        """`[x, y, w, h]`, as in `result.json`."""
        return [self.x, self.y, self.w, self.h]


@dataclass(frozen=True)
class Quality:
    """What the gate looks at. `size`: the shorter side of the box in pixels. `blur`: variance of the Laplacian of the
    grey crop scaled to a fixed size; small is blurred. `blocks`: how plainly the blocks of JPEG show (see `extraction.blocks`);
    large is ruined. None: the face was measured before they were."""

    size: int
    blur: float
    blocks: float | None = None


@dataclass(frozen=True)
class Face:
    """A detected face. `crop` is (size, size, 3) uint8 RGB, what the classifier sees; `reason` set: not to be judged."""

    index: int
    box: Box
    detection: float
    quality: Quality
    reason: Reason | None = None
    crop: Pixels | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Judgement:
    """A face's calibrated probability of manipulation (0 to 1) and the verdict its model's thresholds make of it."""

    index: int
    score: float | None
    verdict: Verdict
    reason: Reason | None = None
    evidence: dict[str, Any] | None = None


@dataclass(frozen=True)
class ModelName:
    """Which model judged: the folder `models/{name}/{version}/` and the sha256 of the file that was run."""

    name: str
    version: str
    sha256: str


def new_id(prefix: str = "") -> str:
    """A time-ordered random id (RFC 9562 UUID version 7, to a quarter of a microsecond), with an optional prefix such as `msg_`."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    value = (milliseconds << 80) | (0x7 << 76) | ((nanoseconds << 12) // 1_000_000 << 64) | (0x2 << 62) | secrets.randbits(62)
    return prefix + str(uuid.UUID(int=value))
