"""The audit: who did what, in the transaction of the deed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from pipeline.database import now
from pipeline.tables.access import AuditRow


def note(session: Session, actor: str, action: str, subject: str, **detail: Any) -> None:
    """Append a deed. `detail` must be JSON, and never hold a secret."""
    session.execute(insert(AuditRow).values(at=now(), actor=actor[:255], action=action, subject=subject[:255], detail=detail))
