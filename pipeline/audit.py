"""The audit: who did what, in the transaction of the deed. Rows are appended, and nothing changes or removes them."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from pipeline.database import Database, now
from pipeline.tables.access import AuditRow

noted: ContextVar[int] = ContextVar("noted", default=0)
"""How many deeds this thread or task has noted: by it the web process sees that a request which changed something left a note."""


def is_time(name: str) -> bool:
    """Whether a number of that name in the detail of a deed is a time, in seconds since the epoch."""
    return name.endswith("_at") or name in ("since", "until")


def note(session: Session, actor: str, action: str, subject: str, **detail: Any) -> None:
    """Append a deed. `detail` must be JSON, and never hold a secret."""
    session.execute(insert(AuditRow).values(at=now(), actor=actor[:255], action=action, subject=subject[:255], detail=detail))
    noted.set(noted.get() + 1)


def clock(session: Session) -> float:
    """The database's time now, by which keys expire: seconds since the epoch."""
    return session.execute(select(now())).scalar_one()


def page(
    db: Database,
    *,
    actor: str | None = None,
    action: str | None = None,
    subject: str | None = None,
    before: int | None = None,
    limit: int,
) -> tuple[Sequence[AuditRow], int | None]:
    """Up to `limit` deeds, newest first, and what to pass as `before` for the next page; None: no more.

    `action` is a whole one (`key.add`) or the kind before its dot (`key`).
    """
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit + 1)
    if actor is not None:
        query = query.where(AuditRow.actor == actor)
    if action is not None:
        query = query.where(AuditRow.action == action if "." in action else AuditRow.action.startswith(f"{action}.", autoescape=True))
    if subject is not None:
        query = query.where(AuditRow.subject == subject)
    if before is not None:
        query = query.where(AuditRow.id < before)
    with db.read() as session:
        rows = session.scalars(query).all()
    return rows[:limit], (rows[limit - 1].id if len(rows) > limit else None)
