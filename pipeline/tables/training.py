"""Trainings, what they tell of themselves while they run, the schedules that ask for them, and the cards they run on."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Boolean, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.database import Base


class TrainingRow(Base):
    """One training and what became of it. Every change of state goes through `pipeline.trainings`."""

    __tablename__ = "trainings"
    __table_args__ = (
        UniqueConstraint("schedule", "slot", name="uq_trainings_slot"),
        Index("ix_trainings_status", "status", "lease_until"),
        Index("ix_trainings_page", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    dataset: Mapped[str] = mapped_column(Text, default="")
    """A folder, a manifest, or either of them as `s3://…`; empty: the default data set, which grows."""
    device: Mapped[str] = mapped_column(String(8))
    """`cpu gpu hpu`."""
    cards: Mapped[str] = mapped_column(String(64), default="")
    """The group that it runs or last ran on, such as `hpu 0,1`."""
    params: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """Options of the trainer by name."""
    schedule: Mapped[str | None] = mapped_column(String(64))
    slot: Mapped[float | None]
    """The due time that it was made for; each at most once per schedule."""
    requested_by: Mapped[str] = mapped_column(String(255))

    status: Mapped[str] = mapped_column(String(16))
    """`queued running done failed cancelled`."""
    phase: Mapped[str] = mapped_column(String(16), default="train")
    """What it is at: `train`, `release` (a model version is made of the weights) or `gate`."""
    fence: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    """Since it last got on (a new checkpoint, a new phase), counted before the work begins."""
    runs: Mapped[int] = mapped_column(default=0)
    """How often a worker has taken it in all."""
    worker: Mapped[str] = mapped_column(String(255), default="")
    lease_until: Mapped[float | None]
    next_attempt_at: Mapped[float | None]
    woken_at: Mapped[float] = mapped_column(default=0.0)
    checkpoint: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """The last that was stored: `prefix`, `files` (sha256 by name), `stage`, `step`, `at`; in phase `gate` the version's files."""
    settled: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """What was decided when it began, so that every worker goes on alike: `dataset_sha256`, `start_name`, `start_version`."""
    progress: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """The last thing that the trainer said."""
    result_name: Mapped[str | None] = mapped_column(String(255))
    result_version: Mapped[str | None] = mapped_column(String(64))
    decision: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """What the gate said of the version."""
    reason: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    sequence: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class TrainingProgressRow(Base):
    """One line that a trainer told: the points of the curve."""

    __tablename__ = "training_progress"
    __table_args__ = (Index("ix_training_progress_training", "training_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    training_id: Mapped[str] = mapped_column(ForeignKey("trainings.id", ondelete="CASCADE"))
    at: Mapped[float]
    fence: Mapped[int]
    """Of the claim that told it: a resumed training tells some steps again."""
    told: Mapped[dict[str, Any]]


class TrainingHistoryRow(Base):
    """What happened to a training, in order; only ever appended to."""

    __tablename__ = "training_history"
    __table_args__ = (Index("ix_training_history_training", "training_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    training_id: Mapped[str] = mapped_column(ForeignKey("trainings.id", ondelete="CASCADE"))
    at: Mapped[float]
    what: Mapped[str] = mapped_column(String(32))
    """`asked claimed went_on waits suspended retried swept done failed cancelled requeued`."""
    worker: Mapped[str] = mapped_column(String(255), default="")
    detail: Mapped[str] = mapped_column(Text, default="")


class ScheduleRow(Base):
    """When to train anew, and how."""

    __tablename__ = "schedules"
    __table_args__ = (Index("ix_schedules_due", "enabled", "next_at"),)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    cron: Mapped[str] = mapped_column(String(255))
    timezone: Mapped[str] = mapped_column(String(64), default="UTC")
    dataset: Mapped[str] = mapped_column(Text, default="")
    device: Mapped[str] = mapped_column(String(8))
    params: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    missed: Mapped[str] = mapped_column(String(16), default="latest")
    """What becomes of slots that nobody was up for: `latest` (the last of them is run, late) or `skip`."""
    on_drift: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether it also fires when drift is found."""
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    next_at: Mapped[float | None]
    """The slot it waits for; None: there is none any more."""
    last_slot: Mapped[float | None]
    created_by: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[float]
    changed_at: Mapped[float]


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
