"""Pinned verdicts: what a face is to be called, which no new model may change unless a person agrees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from pipeline import audit, images, registry
from pipeline.classification import Classifier
from pipeline.collections import WIDE, CollectionError, keep, must_decode, picture, surroundings
from pipeline.database import Database, FaceRow, JobRow, now
from pipeline.images import Limits
from pipeline.jobs import Box, Pixels
from pipeline.png import encode
from pipeline.settings import Settings
from pipeline.storage import Storage
from pipeline.tables.learning import PinRow


@dataclass(frozen=True)
class Pin:
    """A face whose verdict is pinned: `picture` is its file here."""

    sha256: str
    verdict: str
    what: str
    picture: Path


@dataclass(frozen=True)
class Standing:
    """What a candidate and the champion make of the pinned verdicts.

    Attributes:
        pinned: how many there are.
        flipped: those that the champion holds and the candidate does not, each in words; without a champion, all that it does not hold.
        lost: those that neither holds, each in words.
    """

    pinned: int
    flipped: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def pin(db: Database, store: Storage, settings: Settings, pixels: Pixels, verdict: str, *, what: str, actor: str) -> str:
    """Pin the verdict on the largest face of a picture. Returns its hash.

    Raises CollectionError for what is no verdict, and for a picture that is too large to be kept; StorageError.
    """
    if verdict not in ("manipulated", "uncertain", "authentic"):
        raise CollectionError(f"{verdict!r} is no verdict that can be pinned: it is manipulated, uncertain or authentic.")
    data = encode(pixels, 6)
    must_decode(data, what)  # no training would get past one that cannot be read back
    kept = keep(store, settings, data, ".png")
    with db.write() as session:
        at = session.execute(select(now())).scalar_one()
        session.merge(PinRow(sha256=kept, suffix=".png", verdict=verdict, what=what, actor=actor, created_at=at))
        audit.note(session, actor, "verdict.pin", kept, verdict=verdict, what=what)
    return kept


def pin_face(db: Database, store: Storage, settings: Settings, job_id: str, face: int, *, actor: str) -> str:
    """Pin the verdict that a face of a job was given.

    Raises CollectionError where it has none, or one that only the thresholds of its inbox gave it; ModelError where the card of the
    model that judged it is not known, SourceGone, StorageError.
    """
    with db.read() as session:
        job, found = session.get(JobRow, job_id), session.get(FaceRow, (job_id, face))
    if job is None or found is None or found.score is None or job.model_name is None or job.model_version is None:
        raise CollectionError("There is no such face, or it was not judged.")
    by_model = registry.card(db, job.model_name, job.model_version).thresholds.verdict(found.score)
    if by_model.value != found.verdict:
        raise CollectionError(
            f"The face is {found.verdict} by the thresholds of its inbox and {by_model.value} by those of {job.model_name} "
            f"{job.model_version}, which new models are measured by: its verdict cannot be pinned."
        )
    data = store.fetch(job.bucket, job.key, version_id=job.version_id, etag=job.etag, max_bytes=settings.max_image_bytes)
    pixels = surroundings(images.read(data, Limits.of(settings)).pixels, Box(found.x, found.y, found.w, found.h))
    return pin(db, store, settings, pixels, by_model.value, what=f"{job.key}, face {face + 1}", actor=actor)


def unpin(db: Database, sha256: str, *, actor: str) -> None:
    """Let a verdict change again. Raises CollectionError where it is not pinned."""
    with db.write() as session:
        row = session.get(PinRow, sha256)
        if row is None:
            raise CollectionError("No verdict is pinned under that hash.")
        audit.note(session, actor, "verdict.unpin", sha256, verdict=row.verdict, what=row.what)
        session.delete(row)


def every(db: Database) -> list[PinRow]:
    """Every pinned verdict, oldest first."""
    with db.read() as session:
        return list(session.scalars(select(PinRow).order_by(PinRow.created_at, PinRow.sha256)))


def fetched(db: Database, store: Storage, settings: Settings) -> list[Pin]:
    """Every pinned verdict with its picture here. Raises StorageError."""
    return [Pin(row.sha256, row.verdict, row.what, picture(store, settings, row.sha256, row.suffix)) for row in every(db)]


def compare(db: Database, store: Storage, settings: Settings, candidate: Classifier, champion: Classifier | None) -> Standing:
    """What the two make of every pinned verdict, each by its own card's thresholds. Raises StorageError, ImageRefused."""
    from pipeline.training import trial

    pinned = fetched(db, store, settings)
    if not pinned:
        return Standing(0)

    def said(of: Classifier) -> list[tuple[float, str] | None]:
        return trial.verdicts(of, [one.picture for one in pinned], limits=WIDE, cut=trial.cut(settings, of.card))

    flipped, lost = [], []
    before = None if champion is None else said(champion)
    for place, (one, found) in enumerate(zip(pinned, said(candidate), strict=True)):
        if _holds(one, found):
            continue
        becomes = "no face" if found is None else f"{found[1]}, {found[0]:.2f}"
        if before is None or _holds(one, before[place]):
            flipped.append(f"{one.what} ({one.verdict} becomes {becomes})")
        else:
            lost.append(f"{one.what} ({becomes} instead of {one.verdict})")
    return Standing(len(pinned), tuple(flipped), tuple(lost))


def _holds(one: Pin, found: tuple[float, str] | None) -> bool:
    return found is not None and found[1] == one.verdict
