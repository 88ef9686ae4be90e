"""What people say of faces: labels, and what the labels of a face come to.

One person with the role of a reviewer (or more) settles a face; without one, two who look and agree do. Whoever disagrees makes it
disputed, until one of them changes their mind. Every word is in the audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from pipeline import audit
from pipeline.access import Principal, Role
from pipeline.database import Database, FaceRow, JobRow, now
from pipeline.tables.learning import FaceLabelRow, LabelRow

LABELS = ("manipulated", "authentic")
PENDING, ACCEPTED, DISPUTED = "pending", "accepted", "disputed"
MAX_NOTE = 500
ENOUGH = 2
"""So many people without the reviewer's role have to agree."""


class FeedbackError(Exception):
    """A label cannot be taken. `missing`: because there is no such face."""

    permanent = True

    def __init__(self, sentence: str, *, missing: bool = False) -> None:
        super().__init__(sentence)
        self.missing = missing


@dataclass(frozen=True)
class Said:
    """One person's label of a face."""

    actor: str
    label: str
    decides: bool
    """Whether theirs alone settles it."""
    at: float
    note: str = ""


@dataclass(frozen=True)
class Standing:
    """What a face's labels come to: `state` is `pending`, `accepted` or `disputed`, or empty where nobody has said anything."""

    state: str = ""
    label: str | None = None
    said: tuple[Said, ...] = ()
    problem: str | None = None


def outcome(labels: Sequence[tuple[str, bool]]) -> tuple[str, str | None]:
    """State and label of (label, decides) pairs: those who decide go before the others.

    ('', None) for nobody; one who decides: accepted; two agreeing others: accepted; any two of the same standing who
    disagree: disputed.
    """
    if not labels:
        return "", None
    deciding = {label for label, decides in labels if decides}
    said = deciding or {label for label, _ in labels}
    if len(said) > 1:
        return DISPUTED, None
    return (ACCEPTED, said.pop()) if deciding or len(labels) >= ENOUGH else (PENDING, None)


def label(db: Database, who: Principal, job_id: str, face: int, label: str, *, note: str = "") -> Standing:
    """Take somebody's label of a judged face, in place of what they said of it before. Returns what all labels come to.

    Raises FeedbackError for another word, and for a face that there is not or that was not judged.
    """
    if label not in LABELS:
        raise FeedbackError(f"A face is labelled {' or '.join(LABELS)}, not {label!r}.")
    if len(note) > MAX_NOTE:
        raise FeedbackError(f"A note has at most {MAX_NOTE} characters.")
    with db.write() as session:
        _must_be_judged(session, job_id, face)
        before = session.get(LabelRow, (job_id, face, who.actor))
        at = session.execute(select(now())).scalar_one()
        audit.note(session, who.actor, "face.label", f"{job_id}/{face}", label=label, before=before.label if before else None, note=note)
        session.merge(LabelRow(job_id=job_id, face=face, actor=who.actor, role=who.role.value, label=label, note=note, at=at))
        session.flush()
        return _settle(session, job_id, face, at)


def withdraw(db: Database, who: Principal, job_id: str, face: int) -> Standing:
    """Take back what somebody said of a face; what others said stays. Raises FeedbackError where they said nothing."""
    with db.write() as session:
        session.get(FaceRow, (job_id, face), with_for_update=True)
        before = session.get(LabelRow, (job_id, face, who.actor))
        if before is None:
            raise FeedbackError("You have not labelled this face.", missing=True)
        audit.note(session, who.actor, "face.unlabel", f"{job_id}/{face}", before=before.label)
        session.delete(before)
        session.flush()
        return _settle(session, job_id, face, session.execute(select(now())).scalar_one())


def standings(db: Database, job_id: str) -> dict[int, Standing]:
    """What the labels of a job's faces come to, by the index of the face; only of faces that have any."""
    with db.read() as session:
        said: dict[int, list[LabelRow]] = {}
        for row in session.scalars(select(LabelRow).where(LabelRow.job_id == job_id).order_by(LabelRow.face, LabelRow.at)):
            said.setdefault(row.face, []).append(row)
        whole = {row.face: row for row in session.scalars(select(FaceLabelRow).where(FaceLabelRow.job_id == job_id))}
    return {face: _standing(rows, whole.get(face)) for face, rows in said.items()}


def _must_be_judged(session: Session, job_id: str, face: int) -> None:
    row = session.get(FaceRow, (job_id, face), with_for_update=True)  # two who label it at once must see each other's word
    job = session.get(JobRow, job_id)
    if row is None or job is None:
        raise FeedbackError("There is no such face.", missing=True)
    if row.score is None:
        raise FeedbackError("This face was not judged, so that nothing is learnt from a label of it.")


def _settle(session: Session, job_id: str, face: int, at: float) -> Standing:
    rows = list(session.scalars(select(LabelRow).where(LabelRow.job_id == job_id, LabelRow.face == face).order_by(LabelRow.at)))
    state, agreed = outcome([(row.label, _decides(row)) for row in rows])
    known = session.get(FaceLabelRow, (job_id, face))
    if known is None:
        known = FaceLabelRow(job_id=job_id, face=face, state=state, label=agreed, at=at)
        session.add(known)
    elif (known.state, known.label) != (state, agreed):
        known.state, known.label, known.at, known.collected_at, known.problem = state, agreed, at, None, None
    return _standing(rows, known)


def _decides(row: LabelRow) -> bool:
    return Role(row.role).includes(Role.REVIEWER)


def _standing(rows: Sequence[LabelRow], whole: FaceLabelRow | None) -> Standing:
    state, agreed = outcome([(row.label, _decides(row)) for row in rows])
    said = tuple(Said(row.actor, row.label, _decides(row), row.at, row.note) for row in rows)
    return Standing(state, agreed, said, None if whole is None else whole.problem)
