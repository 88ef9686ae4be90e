"""The shadow: a model that scores live traffic beside the champion for a set time, and whose scores nobody sees as results.

At most one model is in the shadow. What it says is kept face by face beside what the champion said, and compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from pipeline import audit, registry
from pipeline.database import AliasRow, Database, now
from pipeline.jobs import new_id
from pipeline.tables.learning import ShadowRow, ShadowScoreRow

MOST = 100_000
"""So many scores are compared at most, the latest."""


class ShadowError(Exception):
    """A model cannot be put into the shadow. Always permanent."""

    permanent = True


@dataclass(frozen=True)
class Shadowing:
    """A model that is in the shadow now."""

    id: str
    name: str
    version: str
    share: float
    until: float


@dataclass(frozen=True)
class Pair:
    """One face as both judged it: scores 0 to 1, verdicts in words."""

    job_id: str
    face: int
    champion_score: float
    champion_verdict: str
    champion_version: str
    score: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """How a model in the shadow and the champion differ on live traffic.

    `mean` of the differences (shadow minus champion), `absolute` of their amounts; `correlation` None for fewer than two
    faces; `verdicts`: (champion's, shadow's) -> faces; `manipulated`: the share of faces either calls so.
    """

    faces: int
    jobs: int
    mean: float
    absolute: float
    correlation: float | None
    verdicts: dict[tuple[str, str], int]
    manipulated: tuple[float, float]

    @property
    def changed(self) -> int:
        """Faces whose verdict would be another."""
        return sum(count for (before, after), count in self.verdicts.items() if before != after)


def begin(db: Database, name: str, version: str, *, seconds: float, share: float, actor: str) -> str:
    """Put a published version into the shadow, in place of another; returns the id. Raises ModelError, ShadowError."""
    registry.card(db, name, version)
    with db.write() as session:
        return begun(session, name, version, seconds=seconds, share=share, actor=actor)


def begun(session: Session, name: str, version: str, *, seconds: float, share: float, actor: str) -> str:
    """The same within a transaction of the caller's. Raises ShadowError."""
    if not 0 < share <= 1 or seconds <= 0:
        raise ShadowError("A shadow needs a time above 0 and a share of the jobs above 0, at most 1.")
    champion = session.get(AliasRow, registry.CHAMPION)
    if champion is not None and (champion.name, champion.version) == (name, version):
        raise ShadowError("The champion itself cannot be in the shadow.")
    at = session.execute(select(now())).scalar_one()
    session.execute(update(ShadowRow).where(ShadowRow.ended_at.is_(None)).values(ended_at=at))
    row = ShadowRow(id=new_id("shd_"), name=name, version=version, share=share, started_at=at, until=at + seconds)
    session.add(row)
    audit.note(session, actor, "model.shadow", f"{name} {version}", seconds=seconds, share=share)
    return row.id


def end(db: Database, name: str, version: str, *, actor: str) -> bool:
    """Take a version out of the shadow; its scores stay. False: it is not there."""
    with db.write() as session:
        mine = (ShadowRow.ended_at.is_(None), ShadowRow.name == name, ShadowRow.version == version, ShadowRow.until > now())
        ended = update(ShadowRow).where(*mine).values(ended_at=now()).returning(ShadowRow.id)
        found = list(session.scalars(ended, execution_options={"synchronize_session": False}))
        if found:
            audit.note(session, actor, "model.unshadow", f"{name} {version}")
        return bool(found)


def current(db: Database) -> Shadowing | None:
    """What is in the shadow now; None: nothing, or its time is over."""
    with db.read() as session:  # the latest: two that were begun at the same moment did not see each other
        standing = select(ShadowRow).where(ShadowRow.ended_at.is_(None), ShadowRow.until > now())
        row = session.scalars(standing.order_by(ShadowRow.started_at.desc(), ShadowRow.id.desc())).first()
        return None if row is None else Shadowing(row.id, row.name, row.version, row.share, row.until)


def every(db: Database, *, limit: int = 20) -> list[ShadowRow]:
    """The latest shadows, newest first."""
    with db.read() as session:
        return list(session.scalars(select(ShadowRow).order_by(ShadowRow.started_at.desc()).limit(limit)))


def record(db: Database, shadow_id: str, pairs: Sequence[Pair]) -> None:
    """Keep what both said; a face that was recorded before stays as it was."""
    if not pairs:
        return
    jobs = {pair.job_id for pair in pairs}
    with db.write() as session:
        columns = (ShadowScoreRow.job_id, ShadowScoreRow.face)
        before = session.execute(select(*columns).where(ShadowScoreRow.shadow_id == shadow_id, ShadowScoreRow.job_id.in_(jobs)))
        known = {(job, face) for job, face in before}
        at = session.execute(select(now())).scalar_one()
        fresh = [{"shadow_id": shadow_id, "at": at, **pair.__dict__} for pair in pairs if (pair.job_id, pair.face) not in known]
        if fresh:
            session.execute(insert(ShadowScoreRow), fresh)


def compared(db: Database, shadow_id: str) -> Comparison | None:
    """How the scores of a shadow differ from the champion's; None while there are none."""
    with db.read() as session:
        columns = (ShadowScoreRow.champion_score, ShadowScoreRow.score, ShadowScoreRow.champion_verdict, ShadowScoreRow.verdict)
        of_this = ShadowScoreRow.shadow_id == shadow_id
        rows = session.execute(select(*columns).where(of_this).order_by(ShadowScoreRow.at.desc()).limit(MOST)).all()
        jobs = session.scalar(select(func.count(func.distinct(ShadowScoreRow.job_id))).where(of_this)) or 0
    if not rows:
        return None
    before, after = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    varied = len(rows) > 1 and before.std() > 0 and after.std() > 0
    verdicts = Counter((str(row[2]), str(row[3])) for row in rows)
    manipulated = tuple(float(np.mean([row[k] == "manipulated" for row in rows])) for k in (2, 3))
    return Comparison(
        len(rows),
        int(jobs),
        float((after - before).mean()),
        float(np.abs(after - before).mean()),
        float(np.corrcoef(before, after)[0, 1]) if varied else None,
        dict(verdicts),
        (manipulated[0], manipulated[1]),
    )
