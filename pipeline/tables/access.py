"""Who may come in, and what they did."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.database import Base


class ApiKeyRow(Base):
    """A key of the API. Only its hash is kept; the key itself is shown once."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Public part of the key, by which it is looked up."""
    name: Mapped[str] = mapped_column(String(255))
    hash: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the whole key, which has 256 random bits, so that no slow hash is needed."""
    role: Mapped[str] = mapped_column(String(16))
    inboxes: Mapped[list[str]] = mapped_column(JSON, default=list)
    """What it may see and touch; empty: everything."""
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
    last_used_at: Mapped[float | None]


class UserRow(Base):
    """A person who logs in to the dashboard."""

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    password: Mapped[str] = mapped_column(Text)
    """Argon2id, with its parameters and salt."""
    role: Mapped[str] = mapped_column(String(16))
    inboxes: Mapped[list[str]] = mapped_column(JSON, default=list)
    created_at: Mapped[float]
    disabled_at: Mapped[float | None]
    generation: Mapped[int] = mapped_column(default=0)
    """Grows when the password or role changes: sessions of an older one are over."""


class AuditRow(Base):
    """What somebody did. Rows are only ever appended."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_subject", "subject", "id"), Index("ix_audit_at", "at"))

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float]
    actor: Mapped[str] = mapped_column(String(255))
    """`user:NAME`, `key:ID`, `cli`, `schedule:NAME`, `system`."""
    action: Mapped[str] = mapped_column(String(64))
    """`job.retry`, `model.promote` and so on: subject's kind, then the deed."""
    subject: Mapped[str] = mapped_column(String(255))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
