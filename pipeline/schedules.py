"""Schedules: when to train anew. Each slot gives at most one training, whoever looks and however many look at once.

A slot is a moment that the cron expression names in the schedule's own time zone (an IANA name). Where clocks go forward, a slot
within the hour that is missing is due right after it; where they go back, a fixed time is due the first time only, and one with a
`*` for minute or hour each time. Slots that nobody was up for are missed: with the rule `latest` the last of them is run, late and
once, with `skip` none. A slot that is due while the schedule's training before is not over is passed over, and shown as cancelled.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pipeline import audit, options, trainings
from pipeline.cards import DEVICES
from pipeline.database import Database, now
from pipeline.tables.training import ScheduleRow, TrainingRow

log = logging.getLogger(__name__)

MISSED = ("latest", "skip")
LATE_S = 300.0
"""A slot that is found later than this was missed."""
RECENT_S = 2 * 86_400.0
NOT_OVER = "The schedule's training before it was not over."
EDITABLE = ("cron", "timezone", "dataset", "device", "params", "missed", "on_drift", "enabled")


class ScheduleError(Exception):
    """A schedule cannot be that, or is not there (`missing`). One sentence. Always permanent."""

    permanent = True

    def __init__(self, sentence: str, *, missing: bool = False) -> None:
        super().__init__(sentence)
        self.missing = missing


# -- slots


def next_slot(cron: str, zone: str, after: float) -> float | None:
    """The first slot later than `after`, seconds since the epoch; None: there is none any more. Raises ScheduleError."""
    place = _zone(zone)
    try:
        coming = CronSim(_five(cron), datetime.fromtimestamp(after, place))
        for moment in coming:
            if moment.timestamp() > after:  # in the hour that comes twice, a fixed time may lie in the first of the two
                return moment.timestamp()
    except CronSimError as error:
        raise ScheduleError(f"{cron!r} is no cron expression: {str(error)[:1].lower()}{str(error)[1:]}.") from error
    return None


def words(cron: str) -> str:
    """The expression as a person would say it, such as `At 03:00 on Sunday`."""
    try:
        return str(CronSim(_five(cron), datetime(2026, 1, 1, tzinfo=timezone.utc)).explain())
    except CronSimError:
        return cron


def _five(cron: str) -> str:
    if len(cron.split()) != 5:
        raise ScheduleError(f"{cron!r} is no cron expression: it takes minute, hour, day, month and weekday, such as 0 3 * * 0.")
    return cron


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # a folder, an absolute path, an unknown name
        raise ScheduleError(f"There is no time zone {name!r} on this machine: take an IANA name such as Europe/Berlin.") from error


# -- keeping them


def add(db: Database, name: str, *, actor: str, at: float | None = None, **values: Any) -> ScheduleRow:
    """Make a schedule of `cron`, `device` and, if need be, the other values of `EDITABLE`. Raises ScheduleError, OptionsError."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise ScheduleError(f"{name!r} is no name for a schedule: small letters, digits, dots, dashes and underscores.")
    chosen = _checked({"timezone": "UTC", "missed": "latest", **values})
    if "cron" not in chosen or "device" not in chosen:
        raise ScheduleError("A schedule needs a cron expression and a device.")
    try:
        with db.write() as session:
            when = at if at is not None else _clock(session)
            due = next_slot(chosen["cron"], chosen["timezone"], when) if chosen.get("enabled", True) else None
            row = ScheduleRow(name=name, created_by=actor[:255], created_at=when, changed_at=when, next_at=due, **chosen)
            session.add(row)
            session.flush()
            audit.note(session, actor, "schedule.add", name, **chosen)
            return row
    except IntegrityError:
        raise ScheduleError(f"There is a schedule {name} already: edit it, or choose another name.") from None


def edit(db: Database, name: str, *, actor: str, at: float | None = None, **changes: Any) -> ScheduleRow:
    """Change values of `EDITABLE`. It then waits for its next slot from now: none that lies behind is made up for."""
    chosen = _checked(changes)
    with db.write() as session:
        row = _row(session, name)
        for field, value in chosen.items():
            setattr(row, field, value)
        when = at if at is not None else _clock(session)
        if {"cron", "timezone", "enabled"} & chosen.keys():
            row.next_at = next_slot(row.cron, row.timezone, when) if row.enabled else None
        row.changed_at = when
        session.flush()
        audit.note(session, actor, "schedule.edit", name, **chosen)
        return row


def remove(db: Database, name: str, *, actor: str) -> None:
    """Forget a schedule; its trainings stay. Raises ScheduleError."""
    with db.write() as session:
        session.delete(_row(session, name))
        audit.note(session, actor, "schedule.remove", name)


def every(db: Database) -> list[ScheduleRow]:
    """All schedules by name."""
    with db.read() as session:
        return list(session.scalars(select(ScheduleRow).order_by(ScheduleRow.name)))


def get(db: Database, name: str) -> ScheduleRow:
    """One schedule. Raises ScheduleError, `missing`."""
    with db.read() as session:
        return _row(session, name)


def _row(session: Session, name: str) -> ScheduleRow:
    row = session.get(ScheduleRow, name)
    if row is None:
        raise ScheduleError(f"There is no schedule {name!r}.", missing=True)
    return row


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    chosen = dict(values)
    if unknown := chosen.keys() - set(EDITABLE):
        raise ScheduleError(f"A schedule has no {sorted(unknown)[0]}: it has {', '.join(EDITABLE)}.")
    if "timezone" in chosen:
        _zone(chosen["timezone"])
    if "cron" in chosen:
        chosen["cron"] = " ".join(str(chosen["cron"]).split())
        if next_slot(chosen["cron"], "UTC", datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp()) is None:
            raise ScheduleError(f"{chosen['cron']!r} names no day that ever comes.")
    if chosen.get("missed", MISSED[0]) not in MISSED:
        raise ScheduleError(f"The rule for missed slots is {' or '.join(MISSED)}.")
    if chosen.get("device", DEVICES[0]) not in DEVICES:
        raise ScheduleError(f"The device is one of {', '.join(DEVICES)}.")
    if "params" in chosen:
        chosen["params"] = options.checked(chosen["params"])
    return chosen


# -- firing


def run(db: Database, name: str, *, actor: str) -> str:
    """Train now as a schedule would, beside its slots; returns the training's id. Wake it right after. Raises ScheduleError."""
    with db.write() as session:
        return trainings.asked(session, actor=actor, **_wanted(_row(session, name), None))


def fire_due(db: Database, *, at: float | None = None) -> list[str]:
    """Make the trainings of all slots that are due at `at` (None: now, by the database's clock). Returns the ids to be woken.

    Any number may run this at once: whoever moves a schedule on to its next slot makes the training, in the same transaction.
    """
    with db.read() as session:
        when = at if at is not None else _clock(session)
        due = select(ScheduleRow.name).where(ScheduleRow.enabled.is_(True), ScheduleRow.next_at <= when).order_by(ScheduleRow.next_at)
        names = list(session.scalars(due))
    fired = []
    for name in names:
        try:
            made = _fire(db, name, when)
        except (ScheduleError, IntegrityError) as error:  # a zone that this machine does not know must not keep the others waiting
            log.error("The schedule %s cannot fire: %s", name, error)
            continue
        fired += [made] if made is not None else []
    return fired


def fire_on_drift(db: Database, *, slot: float, found_at: float, actor: str = "system") -> list[str]:
    """Make a training for each enabled schedule that asks for one when drift is found. Returns the ids to be woken.

    `slot` names the finding (see `drift.slot_of`): however often it is told, one training each, none of them where the schedule's
    training before is not over. `found_at`: a schedule that was made or changed later does not look back.
    """
    asks = (ScheduleRow.enabled.is_(True), ScheduleRow.on_drift.is_(True), ScheduleRow.changed_at <= found_at)
    with db.read() as session:
        names = list(session.scalars(select(ScheduleRow.name).where(*asks).order_by(ScheduleRow.name)))
    made = []
    for name in names:
        try:
            with db.write() as session:
                row = session.get(ScheduleRow, name, with_for_update=True)
                if row is None or _known(session, name, slot):
                    continue
                instead = NOT_OVER if _busy(session, name) else None
                training_id = trainings.asked(session, actor=actor, instead=instead, **_wanted(row, slot))
            made += [training_id] if instead is None else []
        except IntegrityError:  # somebody else told of it at this moment
            continue
    return made


def _fire(db: Database, name: str, when: float) -> str | None:
    with db.write() as session:
        row = session.get(ScheduleRow, name)
        if row is None or not row.enabled or row.next_at is None or row.next_at > when:
            return None
        slot = _latest(row, when)
        seen = (ScheduleRow.name == name, ScheduleRow.next_at == row.next_at)
        following = next_slot(row.cron, row.timezone, when)
        moved = update(ScheduleRow).where(*seen).values(next_at=following, last_slot=slot).returning(ScheduleRow.name)
        if session.scalar(moved, execution_options={"synchronize_session": False}) is None:
            return None  # another scheduler was faster
        if (when - slot > LATE_S and row.missed == "skip") or _known(session, name, slot):
            return None
        instead = NOT_OVER if _busy(session, name) else None
        made = trainings.asked(session, actor=f"schedule:{name}", instead=instead, **_wanted(row, slot))
        return made if instead is None else None


def _latest(row: ScheduleRow, when: float) -> float:
    """The last slot up to `when`, from the one it waits for on. Where slots are dense, only the last two days are gone through."""
    slot = row.next_at or when
    for start in (max(slot, when - RECENT_S), slot):
        coming, found = next_slot(row.cron, row.timezone, start - 1), None
        while coming is not None and coming <= when:
            found, coming = coming, next_slot(row.cron, row.timezone, coming)
        if found is not None:
            return found
    return slot


def _wanted(row: ScheduleRow, slot: float | None) -> dict[str, Any]:
    return {"dataset": row.dataset, "device": row.device, "params": dict(row.params), "schedule": row.name, "slot": slot}


def _known(session: Session, name: str, slot: float) -> bool:
    return session.scalar(select(TrainingRow.id).where(TrainingRow.schedule == name, TrainingRow.slot == slot)) is not None


def _busy(session: Session, name: str) -> bool:
    alive = select(TrainingRow.id).where(TrainingRow.schedule == name, TrainingRow.status.in_(trainings.ALIVE))
    return session.scalar(alive.limit(1)) is not None


def _clock(session: Session) -> float:
    return float(session.execute(select(now())).scalar_one())
