"""Drift: whether what came in on a day is distributed as the faces the model was measured on.

Two figures for each of score, face size, sharpness and detection. The population stability index over ten bins of the
reference says how large a change is; the distance of Kolmogorov and Smirnov says whether chance explains it. An alarm wants both, so
that a large day is not called drifted for a change that means nothing, nor a small one for bad luck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
import numpy.typing as npt
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from pipeline import outbox, registry
from pipeline.card import ModelError
from pipeline.database import Database, FaceRow, JobRow, now
from pipeline.jobs import Status
from pipeline.settings import Settings
from pipeline.tables.learning import DriftRow, ReferenceRow

Values = npt.NDArray[np.float64]
MEASURES = ("score", "size", "blur", "detection")
BINS = 10
ALPHA = 0.001
"""Chance of a false alarm of one measure on one day, at most, if faces came independently of each other."""
DAY_S = 86_400.0
MOST = 50_000
"""So many faces of a day are compared at most, the latest."""
BACK_DAYS = 7
"""How far back days without a comparison are looked for."""


@dataclass(frozen=True)
class Compared:
    """A sample beside a reference. `psi_limit` is what the index may be, chance included; `alarm`: both figures say so."""

    n: int
    reference_n: int
    psi: float
    psi_limit: float
    ks: float
    p: float
    alarm: bool


def compare(sample: Sequence[float], reference: Sequence[float], *, psi_limit: float) -> Compared:
    """Compare two samples of numbers. Raises ValueError for an empty one.

    The index of two samples of one distribution is about (1/n + 1/m) chi-squared with nine degrees of freedom: the limit
    is never below what that exceeds once in a thousand times.
    """
    values, known = np.sort(np.asarray(sample, np.float64)), np.sort(np.asarray(reference, np.float64))
    if not len(values) or not len(known):
        raise ValueError("Both samples need values.")
    n, m = len(values), len(known)
    index = psi(values, known)
    limit = max(psi_limit, (1 / n + 1 / m) * _chi_squared(BINS - 1))
    distance, p = ks(values, known)
    return Compared(n, m, index, limit, distance, p, index >= limit and p < ALPHA)


def psi(values: Values, reference: Values) -> float:
    """The population stability index over ten bins that hold equal shares of the reference; half a face is added to each bin."""
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, BINS + 1)[1:-1]))
    counts = [np.bincount(np.searchsorted(edges, side, "right"), minlength=len(edges) + 1) + 0.5 for side in (values, reference)]
    ours, theirs = (count / count.sum() for count in counts)
    return float(((ours - theirs) * np.log(ours / theirs)).sum())


def ks(values: Values, reference: Values) -> tuple[float, float]:
    """The two-sample Kolmogorov-Smirnov distance of sorted samples, 0 to 1, and how often chance alone gives as much."""
    every = np.concatenate([values, reference])
    ours = np.searchsorted(values, every, "right") / len(values)
    theirs = np.searchsorted(reference, every, "right") / len(reference)
    distance = float(np.abs(ours - theirs).max())
    size = math.sqrt(len(values) * len(reference) / (len(values) + len(reference)))
    x = (size + 0.12 + 0.11 / size) * distance  # Stephens' correction for small samples
    if x < 0.2:
        return distance, 1.0
    p = 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))
    return distance, min(1.0, max(0.0, p))


def _chi_squared(degrees: int, z: float = 3.0902) -> float:
    """The value that chi-squared exceeds once in a thousand times (Wilson and Hilferty)."""
    part = 2 / (9 * degrees)
    return float(degrees * (1 - part + z * math.sqrt(part)) ** 3)


def look(db: Database, settings: Settings, *, at: float | None = None) -> list[str]:
    """Compare every day of the last week that is over and was not compared yet; returns the days that gave an alarm.

    A day is compared with the reference of the model that is champion now, and only by faces which that model judged. `at`: the
    present, seconds since the epoch; None: by the database's clock.
    """
    with db.read() as session:
        present = session.execute(select(now())).scalar_one() if at is None else at
        known = set(session.scalars(select(DriftRow.day).distinct()))
    reference = _reference(db)
    if reference is None:
        return []
    alarms = []
    today = math.floor(present / DAY_S)
    for number in range(today - BACK_DAYS, today):
        day = day_of(number * DAY_S)
        if day not in known and _compare_day(db, settings, day, number * DAY_S, reference):
            alarms.append(day)
    return alarms


def day_of(seconds: float) -> str:
    """`2026-11-26`, UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d")


def start_of(day: str) -> float:
    """When a day began, seconds since the epoch."""
    return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=timezone.utc).timestamp()


def slot_of(day: str) -> float:
    """What a day's finding is called among a schedule's slots: a second past its midnight, which no cron expression names."""
    return start_of(day) + 1.0


def findings(db: Database, *, days: int = BACK_DAYS) -> dict[str, float]:
    """The days of the last week that gave an alarm, and when that was found, oldest first: whoever found them may have died since."""
    with db.read() as session:
        since = day_of(session.execute(select(now())).scalar_one() - (days + 1) * DAY_S)
        found = select(DriftRow.day, func.min(DriftRow.created_at)).where(DriftRow.alarm.is_(True), DriftRow.day >= since)
        return {str(day): float(at) for day, at in session.execute(found.group_by(DriftRow.day).order_by(DriftRow.day)).all()}


def _reference(db: Database) -> ReferenceRow | None:
    try:
        champion = registry.champion(db)
    except ModelError:
        return None
    with db.read() as session:
        return session.get(ReferenceRow, champion)


def _compare_day(db: Database, settings: Settings, day: str, start: float, reference: ReferenceRow) -> bool:
    columns = (FaceRow.job_id, FaceRow.score, FaceRow.size, FaceRow.blur, FaceRow.detection)
    with db.read() as session:
        rows = session.execute(
            select(*columns)
            .join(JobRow, JobRow.id == FaceRow.job_id)
            .where(
                JobRow.created_at >= start,
                JobRow.created_at < start + DAY_S,
                JobRow.status == Status.DONE.value,
                JobRow.model_name == reference.name,
                JobRow.model_version == reference.version,
                FaceRow.score.is_not(None),
            )
            .order_by(JobRow.created_at.desc(), FaceRow.index.desc())
            .limit(MOST)
        ).all()
    # faces of one picture resemble each other: one of each, or chance would be thought smaller than it is
    rows = list({row[0]: row for row in rows}.values())
    if len(rows) < settings.drift_min_faces:
        return False
    found = {}
    for place, measure in enumerate(MEASURES, 1):
        # references of before 27 November 2026 have each photograph's score five times: as it is, then of four worse copies
        known = (reference.samples.get(measure) or [])[: len(reference.samples.get("size") or ()) or None]
        if known:
            found[measure] = compare([float(row[place] or 0.0) for row in rows], known, psi_limit=settings.drift_psi)
    try:
        return _record(db, day, reference, found)
    except IntegrityError:  # somebody else wrote the day down at this moment, and announces it
        return False


def _record(db: Database, day: str, reference: ReferenceRow, found: Mapping[str, Compared]) -> bool:
    """Write a day down, and announce its alarms once. False: no alarm, or somebody else was faster."""
    with db.write() as session:
        if session.scalar(select(func.count()).where(DriftRow.day == day)):
            return False
        at = session.execute(select(now())).scalar_one()
        for measure, one in found.items():
            model = {"model_name": reference.name, "model_version": reference.version}
            session.add(DriftRow(day=day, measure=measure, created_at=at, **model, **one.__dict__))
        alarms = {measure: one for measure, one in found.items() if one.alarm}
        if not alarms:
            return False
        told = [
            {"measure": measure, "psi": round(one.psi, 4), "ks": round(one.ks, 4), "p": float(f"{one.p:.3g}")}
            for measure, one in alarms.items()
        ]
        faces = max(one.n for one in alarms.values())
        sequence = outbox.next_sequence(session, f"drift-{day}")
        data = {"day": day, "name": reference.name, "version": reference.version, "faces": faces, "measures": told}
        outbox.announce(session, "drift.alarm", f"drift-{day}", sequence, data | {"sequence": sequence, "url": "/v1/drift"})
        return True


def days(db: Database, *, limit: int = 30) -> dict[str, list[DriftRow]]:
    """The latest compared days, newest first, each with its measures."""
    with db.read() as session:
        chosen = list(session.scalars(select(DriftRow.day).distinct().order_by(DriftRow.day.desc()).limit(limit)))
        rows = list(session.scalars(select(DriftRow).where(DriftRow.day.in_(chosen))))
    order = {measure: place for place, measure in enumerate(MEASURES)}
    return {day: sorted((row for row in rows if row.day == day), key=lambda row: order[row.measure]) for day in chosen}


def alarm(db: Database) -> tuple[str, list[str]] | None:
    """The latest compared day and what drifted on it; None: nothing did."""
    with db.read() as session:
        latest = session.scalar(select(func.max(DriftRow.day)))
        measures = list(session.scalars(select(DriftRow.measure).where(DriftRow.day == latest, DriftRow.alarm.is_(True))))
    return (latest, sorted(measures)) if latest and measures else None
