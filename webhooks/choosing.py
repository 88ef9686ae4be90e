"""What is shown and done about candidates from outside, by the API or on the dashboard."""

from __future__ import annotations

import time

from pipeline import gate, registry, shadow
from pipeline.database import ModelRow
from pipeline.shadow import Comparison
from pipeline.tables.learning import DecisionRow, ShadowRow
from webhooks.access import principal
from webhooks.context import Context
from webhooks.problems import Problem


def published(context: Context, name: str, version: str) -> None:
    """Raise Problem 404 unless that version is published."""
    with context.database.read() as session:
        if session.get(ModelRow, (name, version)) is None:
            raise Problem(404, "There is no published model of that name and version.")


def decision_picture(context: Context, decision_id: str) -> bytes:
    """The PNG of a decision. Raises Problem 404, StorageError."""
    with context.database.read() as session:
        row = session.get(DecisionRow, decision_id)
        key = row.picture if row is not None else ""
    if not key:
        raise Problem(404, "There is no picture of that decision.")
    return context.storage.fetch(context.settings.models_bucket, key, max_bytes=gate.MAX_PICTURE_BYTES)


def begin_shadow(context: Context, name: str, version: str, *, hours: float | None = None, share: float | None = None) -> None:
    """Put a version into the shadow, for as long and as often as the settings say if not told. Raises Problem 404, 409."""
    published(context, name, version)
    if (name, version) == registry.champion(context.database):
        raise Problem(409, "The champion itself cannot be in the shadow.")
    seconds = hours * 3600 if hours is not None else context.settings.shadow_s or 86_400.0
    share = share or context.settings.shadow_share
    shadow.begin(context.database, name, version, seconds=seconds, share=share, actor=principal().actor)


def shadows(context: Context) -> list[tuple[ShadowRow, Comparison | None]]:
    """The latest of them, newest first, and how each differs from the champion."""
    return [(row, shadow.compared(context.database, row.id)) for row in shadow.every(context.database, limit=10)]


def running(row: ShadowRow) -> bool:
    """Whether it scores live traffic now."""
    return row.ended_at is None and row.until > time.time()
