"""What people say of faces, what is trained and measured on, and how candidates and live traffic compare with it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Boolean, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.database import Base


class LabelRow(Base):
    """What one person said of a face. Saying something else replaces it; the audit has both."""

    __tablename__ = "labels"

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    face: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    actor: Mapped[str] = mapped_column(String(255), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    """Theirs when they said it."""
    label: Mapped[str] = mapped_column(String(16))
    """`manipulated` or `authentic`."""
    note: Mapped[str] = mapped_column(Text, default="")
    at: Mapped[float]


class FaceLabelRow(Base):
    """What all labels of a face come to."""

    __tablename__ = "face_labels"
    __table_args__ = (Index("ix_face_labels_state", "state", "collected_at"),)

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    face: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(16))
    """`pending accepted disputed`."""
    label: Mapped[str | None] = mapped_column(String(16))
    """Where accepted."""
    at: Mapped[float]
    collected_at: Mapped[float | None]
    """When its picture was put into the data set, or was found to be gone."""
    problem: Mapped[str | None] = mapped_column(Text)
    """Why its picture could not be had."""


class ItemRow(Base):
    """One picture of a data set. The picture lies in the models bucket under its hash."""

    __tablename__ = "items"

    collection: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    suffix: Mapped[str] = mapped_column(String(8))
    fake: Mapped[bool] = mapped_column(Boolean)
    identity: Mapped[str] = mapped_column(Text)
    manipulation: Mapped[str] = mapped_column(String(64))
    split: Mapped[str] = mapped_column(String(8))
    """`train`, `val`, or `test`: the hold-out, which nothing is ever trained on."""
    group: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    job_id: Mapped[str | None] = mapped_column(String(64))
    """Set where it is a labelled face; else it was added by hand."""
    face: Mapped[int | None]
    added_at: Mapped[float]


class CollectionRow(Base):
    """A manifest that was written: a data set as it was at one moment, named by its hash."""

    __tablename__ = "collections"
    __table_args__ = (Index("ix_collections_name", "name", "created_at"),)

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    counts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """Pictures by split and label, people, labelled faces."""
    created_at: Mapped[float]


class PinRow(Base):
    """A face whose verdict no new model may change unless a person agrees."""

    __tablename__ = "pins"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    suffix: Mapped[str] = mapped_column(String(8))
    verdict: Mapped[str] = mapped_column(String(16))
    what: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[float]


class DecisionRow(Base):
    """What the gate decided about a candidate, and why."""

    __tablename__ = "decisions"
    __table_args__ = (Index("ix_decisions_model", "name", "version"), Index("ix_decisions_created", "created_at"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    version: Mapped[str] = mapped_column(String(64))
    champion_name: Mapped[str | None] = mapped_column(String(255))
    champion_version: Mapped[str | None] = mapped_column(String(64))
    training_id: Mapped[str] = mapped_column(String(64))
    outcome: Mapped[str] = mapped_column(String(16))
    checks: Mapped[list[Any]] = mapped_column(JSON)
    figures: Mapped[dict[str, Any]] = mapped_column(JSON)
    picture: Mapped[str] = mapped_column(Text)
    dataset: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    settled_by: Mapped[str | None] = mapped_column(String(255))
    settled_at: Mapped[float | None]


class ShadowRow(Base):
    """A model that scores live traffic beside the champion, unseen, for a set time."""

    __tablename__ = "shadows"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    version: Mapped[str] = mapped_column(String(64))
    share: Mapped[float]
    """Of the jobs, 0 to 1."""
    started_at: Mapped[float]
    until: Mapped[float]
    ended_at: Mapped[float | None]


class ShadowScoreRow(Base):
    """One face as the champion and the model in the shadow judged it."""

    __tablename__ = "shadow_scores"

    shadow_id: Mapped[str] = mapped_column(ForeignKey("shadows.id", ondelete="CASCADE"), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    face: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    champion_score: Mapped[float]
    champion_verdict: Mapped[str] = mapped_column(String(16))
    champion_version: Mapped[str] = mapped_column(String(64))
    score: Mapped[float]
    verdict: Mapped[str] = mapped_column(String(16))
    at: Mapped[float]


class ReferenceRow(Base):
    """How scores and quality are distributed on the hold-out, for one model: what live traffic is compared with."""

    __tablename__ = "drift_references"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    dataset: Mapped[str] = mapped_column(String(64))
    samples: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Measure -> values."""
    created_at: Mapped[float]


class DriftRow(Base):
    """One measure of one day of live traffic against its reference."""

    __tablename__ = "drift"

    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    """`2026-11-26`, UTC."""
    measure: Mapped[str] = mapped_column(String(16), primary_key=True)
    model_name: Mapped[str] = mapped_column(String(255))
    model_version: Mapped[str] = mapped_column(String(64))
    n: Mapped[int]
    reference_n: Mapped[int]
    psi: Mapped[float]
    psi_limit: Mapped[float]
    ks: Mapped[float]
    p: Mapped[float]
    alarm: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[float]
