"""The statements that every job goes through on its way, each built once: what `ledger` says most often (see `brief`).

Each change is the ledger's compare-and-set: its WHERE names the state it starts from, and it gives a row only if it was made.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import ColumnElement, Table, and_, bindparam, insert, not_, select, update

from pipeline.brief import Statement
from pipeline.changes import in_paused_queue, may_start
from pipeline.database import FaceRow, JobRow, now
from pipeline.jobs import Status

JOBS = cast(Table, JobRow.__table__)
FACES = cast(Table, FaceRow.__table__)

_THIS = JOBS.c.id == bindparam("this")
_AT_STAGE = JOBS.c.stage == bindparam("at_stage")
_HELD = and_(_THIS, JOBS.c.status == Status.RUNNING.value, _AT_STAGE, JOBS.c.fence == bindparam("held"))
"""The claim is still held: `this`, `at_stage` and `held` are the job, the stage and the fence of a claim."""

_OF_UPLOAD = ["id", "bucket", "key", "version_id", "etag", "sequencer", "size", "origin", "inbox", "queue"]
_AT_FIRST = ["status", "stage", "fence", "attempts", "worker", "timings_ms", "sequence"]
JOB = Statement(insert(JOBS).values(woken_at=now(), created_at=now()), _OF_UPLOAD + _AT_FIRST)
_OF_FACE = ["job_id", "index", "x", "y", "w", "h", "detection", "size", "blur", "blocks", "crop", "verdict", "reason"]
FACE = Statement(insert(FACES), _OF_FACE)


def _claim(*also: ColumnElement[bool], **values: Any) -> Statement:
    waits = (_THIS, JOBS.c.status == Status.QUEUED.value, _AT_STAGE, JOBS.c.attempts < bindparam("most"))
    lease = now() + bindparam("lease_s", type_=JOBS.c.created_at.type)
    counted = {"fence": JOBS.c.fence + 1, "attempts": JOBS.c.attempts + 1, "worker": bindparam("by")}
    taken = update(JOBS).where(*waits, may_start(), not_(in_paused_queue()), *also)
    taken = taken.values(status=Status.RUNNING.value, lease_until=lease, next_attempt_at=None, **counted, **values)
    return Statement(taken.returning(JOBS))


CLAIM = _claim()
"""Take a queued job of the stage `at_stage` that has been tried fewer than `most` times."""
CLAIM_FIRST = _claim(JOBS.c.started_at.is_(None), started_at=now(), sequence=JOBS.c.sequence + 1)
"""The same of a job that nobody has ever taken."""

RENEW = Statement(
    update(JOBS).where(_HELD).values(lease_until=now() + bindparam("lease_s", type_=JOBS.c.created_at.type)).returning(JOBS.c.id)
)
STILL_HELD = Statement(select(JOBS.c.id).where(_HELD))
PLACE = Statement(select(JOBS.c.status, JOBS.c.stage).where(_THIS))


def _onward(**values: Any) -> Statement:
    given: dict[str, Any] = {"stage": bindparam("next_stage"), "timings_ms": bindparam("timings", type_=JOBS.c.timings_ms.type)}
    free: dict[str, Any] = {"status": Status.QUEUED.value, "lease_until": None, "worker": "", "attempts": 0, "next_attempt_at": None}
    moved = update(JOBS).where(_HELD).values(**free, **given, woken_at=now(), error=None, **values)
    return Statement(moved.returning(JOBS.c.id))


def _open(*names: str) -> dict[str, ColumnElement[Any]]:
    return {name: bindparam(f"new_{name}", type_=JOBS.c[name].type) for name in names}


EXTRACTED = _onward(**_open("sha256", "width", "height", "verdict", "reason"))
"""Let go of the claim and wait for `next_stage`; `new_...` are the columns' values."""
CLASSIFIED = _onward(**_open("model_name", "model_version", "model_sha256", "verdict", "score", "reason"))

DONE = Statement(
    update(JOBS)
    .where(_HELD)
    .values(
        status=Status.DONE.value,
        lease_until=None,
        next_attempt_at=None,
        finished_at=now(),
        error=None,
        sequence=JOBS.c.sequence + 1,
        **_open("annotated_key", "result_key", "timings_ms"),
    )
    .returning(JOBS)
)

THE_JOB = Statement(select(JOBS).where(_THIS))
_OF_THIS = FACES.c.job_id == bindparam("this")
_BY_INDEX = (FACES.c.index,)
THE_FACES = Statement(select(*(column for column in FACES.c if column.name != "crop")).where(_OF_THIS).order_by(*_BY_INDEX))
THE_FACES_AND_CROPS = Statement(select(FACES).where(_OF_THIS).order_by(*_BY_INDEX))
JUDGE_FACE = Statement(
    update(FACES)
    .where(_OF_THIS, FACES.c.index == bindparam("at_index"))
    .values(**{name: bindparam(f"new_{name}", type_=FACES.c[name].type) for name in ("score", "verdict", "reason", "evidence")})
)
DROP_CROPS = Statement(update(FACES).where(_OF_THIS).values(crop=None).returning(FACES.c.index, FACES.c.verdict))
"""The crops go; gives every face's verdict, in any order."""
