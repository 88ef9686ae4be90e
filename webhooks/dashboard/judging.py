"""What the jobs of a page were judged by: the cards of their models, and the thresholds that applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from pipeline import inboxes, registry
from pipeline.card import Card, ModelError
from pipeline.database import Database, JobRow
from pipeline.inboxes import Inbox
from webhooks.context import Context

Cards = Mapping[tuple[str | None, str | None], Card]
"""By name and version."""


@dataclass(frozen=True)
class Bounds:
    """Thresholds, and the inbox that put them in place of its model's own; empty: they are the model's."""

    authentic_below: float
    manipulated_from: float
    inbox: str = ""


def champion(db: Database) -> Card | None:
    """The card of the model that judges now."""
    try:
        return registry.card(db, *registry.champion(db))
    except ModelError:
        return None


def cards(db: Database, rows: Iterable[JobRow]) -> Cards:
    """The cards of the models that judged these jobs: one query a version. Versions that were withdrawn since have none."""
    found: dict[tuple[str | None, str | None], Card] = {}
    for name, version in {(row.model_name, row.model_version) for row in rows}:
        if name is not None and version is not None:
            with suppress(ModelError):
                found[name, version] = registry.card(db, name, version)
    return found


def thresholds(context: Context, rows: Iterable[JobRow], known: Cards) -> dict[str, Bounds]:
    """By job, those its inbox has now, else those of its model; without the jobs of which they are not known. One query."""
    judged = [row for row in rows if row.score is not None]
    places = {place.name: place for place in inboxes.directory(context.settings, context.database).inboxes} if judged else {}
    found = {row.id: _bounds(places.get(row.inbox), known.get((row.model_name, row.model_version))) for row in judged}
    return {job_id: bounds for job_id, bounds in found.items() if bounds is not None}


def _bounds(place: Inbox | None, card: Card | None) -> Bounds | None:
    if place is not None and place.authentic_below is not None and place.manipulated_from is not None:
        return Bounds(place.authentic_below, place.manipulated_from, place.name)
    # an inbox that nobody knows may have had thresholds
    return None if place is None or card is None else Bounds(card.thresholds.authentic_below, card.thresholds.manipulated_from)
