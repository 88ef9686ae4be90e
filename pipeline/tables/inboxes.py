"""The inboxes: where uploads come in, what is done differently for each, and how far a back-fill is."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.database import Base


class InboxRow(Base):
    """A bucket, or a prefix of one, with settings of its own. The one named `default` is that of the settings.

    What is None or empty is as the settings have it. Two inboxes of one bucket never overlap.
    """

    __tablename__ = "inboxes"
    __table_args__ = (Index("ix_inboxes_bucket", "bucket"),)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    bucket: Mapped[str] = mapped_column(String(255))
    prefix: Mapped[str] = mapped_column(Text, default="")
    suffixes: Mapped[list[str]] = mapped_column(JSON, default=list)
    """Endings that are taken, in lower case with their dot; empty: those of images."""
    results_bucket: Mapped[str] = mapped_column(String(255), default="")
    results_prefix: Mapped[str] = mapped_column(Text, default="")
    queue: Mapped[str] = mapped_column(String(16), default="bulk")
    authentic_below: Mapped[float | None]
    manipulated_from: Mapped[float | None]
    """Thresholds in place of the model's own; both or neither."""
    source: Mapped[str] = mapped_column(String(16), default="webhook")
    """How its uploads are heard of, beside the listing: `webhook`, `sqs`, or `none`."""
    sqs_url: Mapped[str] = mapped_column(Text, default="")
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    created_at: Mapped[float]


class BackfillRow(Base):
    """How far the back-fill of an inbox is. Written in the transaction that makes the jobs it tells of."""

    __tablename__ = "backfills"

    inbox: Mapped[str] = mapped_column(String(64), primary_key=True)
    prefix: Mapped[str] = mapped_column(Text, primary_key=True, default="")
    """Of the keys that are listed; begins with the inbox's."""
    after: Mapped[str] = mapped_column(Text, default="")
    """Everything up to this key is done."""
    seen: Mapped[int] = mapped_column(BigInteger, default=0)
    made: Mapped[int] = mapped_column(BigInteger, default=0)
    """Jobs made of objects that had none."""
    left_alone: Mapped[int] = mapped_column(BigInteger, default=0)
    """Objects that are no images, or can have no job."""
    started_at: Mapped[float]
    updated_at: Mapped[float]
    finished_at: Mapped[float | None]
