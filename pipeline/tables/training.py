"""Trainings, the cards they run on, and schedules."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.database import Base


class CardLeaseRow(Base):
    """Who has a card. One row a card, made when it is first taken and never deleted: its fence only grows."""

    __tablename__ = "card_leases"

    card: Mapped[str] = mapped_column(String(255), primary_key=True)
    """`machine/device/module id`."""
    fence: Mapped[int] = mapped_column(default=0)
    """Grows each time the card is taken; what was begun under an older one is not published."""
    holder: Mapped[str] = mapped_column(String(255), default="")
    """The worker that has it; empty: nobody."""
    training: Mapped[str] = mapped_column(String(64), default="")
    lease_until: Mapped[float | None]
    """None: it is free."""
    changed_at: Mapped[float]
