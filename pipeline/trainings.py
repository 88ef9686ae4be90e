"""The ledger of trainings: every change of a training's state, each one transaction.

As in the ledger of jobs, a change is a compare-and-set that counts only if it changed a row, a claim has a fence, and attempts are
counted before the work. A training goes through three phases, `train`, `release` and `gate`, and keeps its last stored checkpoint
over them all, so that any worker can go on with it. Attempts count from the last time that it got on: what dies again and again
without coming any further fails, what is merely killed often does not.

::

    queued ──claim──► running ──► done        the gate has decided about the version
      ▲                  │  └───► failed      it cannot work, or did not get on for too many attempts
      └─suspend, retry, ─┤
           sweep         └──────► cancelled   a person said so
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, and_, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pipeline import audit, outbox
from pipeline.changes import ago, clean
from pipeline.database import Database, now
from pipeline.jobs import Status, new_id
from pipeline.tables.training import TrainingHistoryRow, TrainingProgressRow, TrainingRow

PHASES = ("train", "release", "gate")
ALIVE = (Status.QUEUED.value, Status.RUNNING.value)
LONGEST_WAIT_S = 600.0
CURVE_EVERY_S = 15.0
"""Lines between two looks are kept for the curve no more often than this."""
_FREE: dict[str, Any] = {"status": Status.QUEUED.value, "lease_until": None, "worker": ""}


@dataclass(frozen=True)
class Claim:
    """The right to go on with a training, until the lease ends or somebody takes it away (see `renew`).

    `attempt` counts from 1 since it last got on, `run` from 1 in all. `checkpoint`, `settled`: see `TrainingRow`.
    """

    training_id: str
    fence: int
    attempt: int
    run: int
    worker: str
    phase: str
    dataset: str
    device: str
    created_at: float
    params: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] | None = None
    settled: Mapping[str, Any] = field(default_factory=dict)


# -- coming in


def ask(
    db: Database,
    *,
    actor: str,
    device: str,
    dataset: str = "",
    params: Mapping[str, Any] | None = None,
    schedule: str | None = None,
    slot: float | None = None,
    instead: str | None = None,
) -> str | None:
    """Make a training; returns its id, or None if the schedule's slot has one already. Wake it right after.

    `params` as `options.checked` gives them. `instead`: a sentence; the slot is taken, but the training cancelled from the start.
    """
    wanted = {"dataset": dataset, "device": device, "params": dict(params or {}), "schedule": schedule, "slot": slot}
    try:
        with db.write() as session:
            return asked(session, actor=actor, instead=instead, **wanted)
    except IntegrityError:
        if slot is None:
            raise
        return None


def asked(session: Session, *, actor: str, instead: str | None = None, **wanted: Any) -> str:
    """The same within a transaction of the caller's. Raises IntegrityError where the slot has its training."""
    status = Status.QUEUED if instead is None else Status.CANCELLED
    row = TrainingRow(id=new_id("trn_"), status=status.value, requested_by=actor[:255], woken_at=now(), created_at=now(), **wanted)
    if instead is not None:
        row.reason, row.finished_at = instead, now()
    session.add(row)
    session.flush()
    _record(session, row.id, "asked" if instead is None else "cancelled", detail=instead or f"by {actor}")
    told = {name: value for name, value in wanted.items() if value not in (None, "", {})}
    audit.note(session, actor, "training.ask", row.id, **told)
    return row.id


# -- claims


def claim(db: Database, training_id: str, *, worker: str, lease_s: float, max_attempts: int, cards: str = "") -> Claim | None:
    """Take a queued training; None: it is not to be had now. The attempt is counted and committed before this returns."""
    with db.write() as session:
        row = session.get(TrainingRow, training_id)
        if row is None or row.status != Status.QUEUED.value:
            return None
        if not session.execute(select(_may_start()).where(TrainingRow.id == training_id)).scalar_one():
            return None
        as_seen = (TrainingRow.status == row.status, TrainingRow.fence == row.fence)
        if row.attempts >= max_attempts:  # only when `max_attempts` is lowered
            _end(session, training_id, Status.FAILED, *as_seen, reason=_worn_out(row.attempts, row.phase))
            return None
        taken = {"status": Status.RUNNING.value, "fence": row.fence + 1, "attempts": row.attempts + 1, "runs": row.runs + 1}
        taken |= {"worker": clean(worker)[:255], "cards": cards, "lease_until": now() + lease_s, "next_attempt_at": None, "reason": None}
        if row.started_at is None:
            taken["started_at"] = now()
        after = _change(session, training_id, *as_seen, **taken)
        if after is None:
            return None
        _record(
            session, training_id, "claimed", after.worker, f"for the phase {after.phase}, on {cards}" if cards else f"for {after.phase}"
        )
        plain = ("worker", "phase", "dataset", "device", "created_at", "params", "checkpoint", "settled")
        counted: dict[str, Any] = {"fence": after.fence, "attempt": after.attempts, "run": after.runs}
        return Claim(training_id, **counted, **{name: getattr(after, name) for name in plain})


def renew(db: Database, claim: Claim, lease_s: float) -> bool:
    """Hold the claim for another `lease_s` from now. False: it is lost (swept, cancelled): stop, nothing will be kept."""
    with db.write() as session:
        return _change(session, claim.training_id, *_held(claim), lease_until=now() + lease_s) is not None


# -- going on


def told(db: Database, claim: Claim, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Keep what the trainer said: the last line as its progress, looks and some steps for the curve. False: the claim is lost."""
    if not lines:
        return True
    with db.write() as session:
        row = session.get(TrainingRow, claim.training_id)
        before = dict(row.progress) if row is not None else {}
        shown = [_finite(line) for line in lines if line.get("event") in ("step", "look")]
        progress = {**before, **dict(shown[-1])} if shown else before
        last = before.get("kept_s")
        points = []
        for line in shown:
            at = float(line.get("seconds") or 0.0)
            if line["event"] == "look" or last is None or not 0 <= at - last < CURVE_EVERY_S:
                points.append(dict(line))
                last = at
        if _change(session, claim.training_id, *_held(claim), progress={**progress, "kept_s": last}) is None:
            return False
        for point in points:
            session.execute(insert(TrainingProgressRow).values(training_id=claim.training_id, at=now(), fence=claim.fence, told=point))
        return True


def settled(db: Database, claim: Claim, **facts: Any) -> bool:
    """Keep what was decided when it was begun, such as which state of a growing data set it learns from. False: the claim is lost."""
    with db.write() as session:
        row = session.get(TrainingRow, claim.training_id)
        return row is not None and _change(session, row.id, *_held(claim), settled={**row.settled, **facts}) is not None


def got_on(
    db: Database,
    claim: Claim,
    checkpoint: Mapping[str, Any],
    *,
    phase: str | None = None,
    provided: Callable[[Session], None] = lambda session: None,
) -> bool:
    """A checkpoint was stored, or a phase is over: attempts count anew from here. False: the claim is lost.

    `checkpoint` is the whole new value: `prefix`, `files`, and for display `stage` and `step`. `provided` is called within the
    transaction, and may raise to keep it from happening.
    """
    with db.write() as session:
        provided(session)
        at = session.execute(select(now())).scalar_one()
        values: dict[str, Any] = {"checkpoint": {**checkpoint, "at": at}, "attempts": 1, "phase": phase or claim.phase}
        if _change(session, claim.training_id, *_held(claim), **values) is None:
            return False
        if phase is not None:
            _record(session, claim.training_id, "went_on", claim.worker, f"to the phase {phase}")
        return True


def postpone(db: Database, training_id: str, seconds: float, sentence: str) -> None:
    """A queued training cannot be begun yet: not to be woken for so many seconds, and why."""
    with db.write() as session:
        row, queued = session.get(TrainingRow, training_id), TrainingRow.status == Status.QUEUED.value
        before = None if row is None else row.reason
        values: dict[str, Any] = {"next_attempt_at": now() + seconds, "woken_at": 0.0, "reason": clean(sentence)}
        # one that waits for days is told so every few seconds, and need not be written down each time
        if _change(session, training_id, queued, **values) is not None and before != clean(sentence):
            _record(session, training_id, "waits", detail=sentence)


def suspend(db: Database, claim: Claim) -> bool:
    """The worker is ending, and its checkpoint is stored: another one may go on at once. Counts as no attempt. False: the claim is lost."""
    with db.write() as session:
        values: dict[str, Any] = {"attempts": TrainingRow.attempts - 1, "next_attempt_at": None, "woken_at": 0.0}
        if _change(session, claim.training_id, *_held(claim), **_FREE, **values) is None:
            return False
        _record(session, claim.training_id, "suspended", claim.worker, "The worker was asked to end.")
        return True


# -- coming to an end


def retry(
    db: Database, claim: Claim, sentence: str, *, permanent: bool, max_attempts: int, first_wait_s: float, error: str = ""
) -> Status | None:
    """It went wrong: `queued` again to wait for `first_wait_s`, then four times as long each time (at most ten minutes), or `failed`.

    Returns where it stands now, None if the claim is lost.
    """
    sentence = clean(sentence)
    with db.write() as session:
        row = session.get(TrainingRow, claim.training_id)
        attempts = claim.attempt if row is None else row.attempts
        if permanent or attempts >= max_attempts:
            ended = _end(session, claim.training_id, Status.FAILED, *_held(claim), reason=sentence, error=clean(error) or None)
            return None if ended is None else Status.FAILED
        wait = wait_s(attempts, first_wait_s)
        values: dict[str, Any] = {"next_attempt_at": now() + wait, "woken_at": 0.0, "reason": sentence, "error": clean(error) or None}
        if _change(session, claim.training_id, *_held(claim), **_FREE, **values) is None:
            return None
        _record(session, claim.training_id, "retried", claim.worker, f"{sentence} Again in {wait:.0f} s.")
        return Status.QUEUED


def wait_s(attempt: int, first_s: float) -> float:
    """Seconds to wait after a failed attempt, counted from 1."""
    return min(first_s * 4.0 ** (attempt - 1), max(LONGEST_WAIT_S, first_s)) * random.uniform(0.8, 1.2)


def finish(db: Database, claim: Claim, *, name: str, version: str, decision: Mapping[str, Any]) -> bool:
    """The gate has decided about its version: it is `done`, and `training.done` announced. False: the claim is lost."""
    with db.write() as session:
        values = {"result_name": name, "result_version": version, "decision": dict(decision), "reason": None, "error": None}
        return _end(session, claim.training_id, Status.DONE, *_held(claim), **values) is not None


def cancel(db: Database, training_id: str, *, actor: str) -> bool:
    """Stop a training; its worker ends the trainer when it next looks. False: it is over, at the gate, or there is none."""
    with db.write() as session:
        # what the gate decides, it decides for good: from there on there is nothing to stop
        alive = or_(
            TrainingRow.status == Status.QUEUED.value,
            and_(TrainingRow.status == Status.RUNNING.value, TrainingRow.phase != PHASES[-1]),
        )
        reason = f"Cancelled by {actor}."
        if _end(session, training_id, Status.CANCELLED, alive, fence=TrainingRow.fence + 1, reason=reason) is None:
            return False
        audit.note(session, actor, "training.cancel", training_id)
        return True


def requeue(db: Database, training_id: str, *, actor: str) -> bool:
    """Let a failed or cancelled training go on from its last checkpoint. False: it is not such a one. Wake it right after."""
    with db.write() as session:
        over = TrainingRow.status.in_([Status.FAILED.value, Status.CANCELLED.value])
        fresh = dict.fromkeys(("reason", "error", "finished_at", "next_attempt_at"))
        values = {**_FREE, **fresh, "fence": TrainingRow.fence + 1, "attempts": 0, "woken_at": 0.0}
        if _change(session, training_id, over, **values) is None:
            return False
        _record(session, training_id, "requeued", detail=f"by {actor}")
        audit.note(session, actor, "training.retry", training_id)
        return True


# -- upkeep


def sweep(db: Database, *, max_attempts: int) -> list[str]:
    """Take back expired leases: queued again, or failed after `max_attempts` without getting on. Returns the ids queued again."""
    expired = and_(TrainingRow.status == Status.RUNNING.value, TrainingRow.lease_until < ago(0.0))
    columns = (TrainingRow.id, TrainingRow.fence, TrainingRow.phase, TrainingRow.attempts, TrainingRow.worker)
    with db.read() as session:
        found = session.execute(select(*columns).where(expired)).all()
    requeued = []
    for training_id, fence, phase, attempts, worker in found:
        as_seen = (expired, TrainingRow.fence == fence)
        with db.write() as session:
            if attempts >= max_attempts:
                _end(session, training_id, Status.FAILED, *as_seen, reason=_worn_out(attempts, phase))
            elif _change(session, training_id, *as_seen, **_FREE, next_attempt_at=None, woken_at=0.0) is not None:
                _record(session, training_id, "swept", worker, "The worker died or stalled.")
                requeued.append(training_id)
    return requeued


def due(db: Database, *, wake_after_s: float, limit: int) -> list[str]:
    """Queued trainings whose message seems lost or whose wait is over, the oldest first; they count as woken now."""
    late = and_(TrainingRow.status == Status.QUEUED.value, TrainingRow.woken_at < ago(wake_after_s), _may_start())
    with db.write() as session:
        ids = list(session.scalars(select(TrainingRow.id).where(late).order_by(TrainingRow.created_at).limit(limit)))
        if not ids:
            return []
        chosen = update(TrainingRow).where(TrainingRow.id.in_(ids), late).values(woken_at=now()).returning(TrainingRow.id)
        woken = set(session.scalars(chosen, execution_options={"synchronize_session": False}))
        return [training_id for training_id in ids if training_id in woken]


def unwoken(db: Database, training_id: str) -> None:
    """The message could not be sent: it is due again at once."""
    with db.write() as session:
        session.execute(update(TrainingRow).where(TrainingRow.id == training_id, TrainingRow.status == "queued").values(woken_at=0.0))


def forsaken(db: Database, *, after_s: float) -> list[tuple[str, int]]:
    """Failed and cancelled trainings that ended so long ago, in seconds, that nobody will go on with them, each with its fence.

    They have no checkpoint now, so that all that was kept may go, and are found again until it is `forgotten`.
    """
    over = TrainingRow.status.in_([Status.FAILED.value, Status.CANCELLED.value])
    with db.write() as session:
        chosen = update(TrainingRow).where(over, TrainingRow.runs > 0, TrainingRow.finished_at < ago(after_s))
        freed = chosen.values(checkpoint=None, phase=PHASES[0]).returning(TrainingRow.id, TrainingRow.fence)
        return [(row.id, row.fence) for row in session.execute(freed, execution_options={"synchronize_session": False})]


def forgotten(db: Database, training_id: str, fence: int) -> bool:
    """All that was kept of a forsaken training is deleted. False: somebody retried it meanwhile, or has said so before."""
    with db.write() as session:
        return _change(session, training_id, TrainingRow.fence == fence, TrainingRow.runs > 0, runs=0) is not None


# -- smaller words


def _finite(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line without numbers that are none: PostgreSQL takes no NaN in JSON, and what is untold keeps checkpoints from being stored."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()}


def _change(session: Session, training_id: str, *as_seen: ColumnElement[bool], **values: Any) -> TrainingRow | None:
    statement = update(TrainingRow).where(TrainingRow.id == training_id, *as_seen).values(**values).returning(TrainingRow)
    return session.scalars(statement, execution_options={"synchronize_session": False, "populate_existing": True}).one_or_none()


def _end(session: Session, training_id: str, status: Status, *as_seen: ColumnElement[bool], **values: Any) -> TrainingRow | None:
    event = {Status.DONE: "training.done", Status.FAILED: "training.failed"}.get(status)
    ended: dict[str, Any] = {"status": status.value, "lease_until": None, "next_attempt_at": None, "finished_at": now()}
    if event is not None:
        ended["sequence"] = TrainingRow.sequence + 1
    row = _change(session, training_id, *as_seen, **ended, **values)
    if row is None:
        return None
    _record(session, training_id, status.value, row.worker, row.reason or "")
    if event is not None:
        outbox.announce(session, event, row.id, row.sequence, event_data(row))
    return row


def event_data(row: TrainingRow) -> dict[str, Any]:
    """The `data` of an event about a training. `url` is a path: whoever sends it puts the public address before it."""
    model = None if row.result_version is None else {"name": row.result_name, "version": row.result_version}
    return {
        "training_id": row.id,
        "status": row.status,
        "dataset": row.dataset or "default",
        "device": row.device,
        "schedule": row.schedule,
        "model": model,
        "outcome": None if row.decision is None else row.decision.get("outcome"),
        "reason": None if row.reason is None else row.reason[: outbox.MAX_SENTENCE],
        "sequence": row.sequence,
        "url": f"/v1/trainings/{row.id}",
    }


def _held(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return (TrainingRow.status == Status.RUNNING.value, TrainingRow.fence == claim.fence)


def _may_start() -> ColumnElement[bool]:
    return or_(TrainingRow.next_attempt_at.is_(None), TrainingRow.next_attempt_at <= now())


def _record(session: Session, training_id: str, what: str, worker: str = "", detail: str = "") -> None:
    row = {"training_id": training_id, "what": what, "worker": worker, "detail": clean(detail)}
    session.execute(insert(TrainingHistoryRow).values(at=now(), **row))


def _worn_out(attempts: int, phase: str) -> str:
    return f"It was tried {attempts} times without getting on in the phase {phase}; the last time its worker died or stalled."
