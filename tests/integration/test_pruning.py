"""Old webhook events go, with their deliveries and attempts; nothing goes that somebody still waits for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from sqlalchemy import func, select, update

from pipeline import outbox, pruning
from pipeline.changes import ago
from pipeline.database import Database, DeliveryAttemptRow, DeliveryRow, EndpointRow, EventRow, now
from pipeline.settings import Settings
from tests.fixtures.jobs import brought_to
from workers import upkeep

DAY_S = 86_400.0


def endpoint(db: Database, name: str, **fields: Any) -> None:
    with db.write() as session:
        session.add(EndpointRow(id=name, url=f"https://{name}.example/hook", secret="sealed", created_at=now(), **fields))


def aged(db: Database, days: float, *, status: str = "delivered") -> None:
    """Make all events so old, and their deliveries so."""
    with db.write() as session:
        session.execute(update(EventRow).values(created_at=ago(days * DAY_S)))
        session.execute(update(DeliveryRow).values(status=status))


def counts(db: Database) -> tuple[int, int, int]:
    """Events, deliveries, attempts."""
    with db.read() as session:
        tables = (EventRow, DeliveryRow, DeliveryAttemptRow)
        return tuple(session.execute(select(func.count()).select_from(table)).scalar_one() for table in tables)  # type: ignore[return-value]


def test_an_old_event_goes_with_its_deliveries_and_their_attempts(db: Database) -> None:
    endpoint(db, "a")
    brought_to(db, None)
    with db.write() as session:
        for delivery in session.scalars(select(DeliveryRow.id)).all():
            session.add(DeliveryAttemptRow(delivery_id=delivery, at=now(), duration_ms=1.0))
    aged(db, 2)
    brought_to(db, None)
    assert counts(db) == (4, 4, 2)

    assert pruning.prune(db, older_s=3 * DAY_S) == 0
    assert pruning.prune(db, older_s=DAY_S) == 2
    assert counts(db) == (2, 2, 0)


@pytest.mark.parametrize(("status", "left"), [("pending", 2), ("failed", 0), ("delivered", 0)])
def test_what_is_still_to_be_sent_stays(db: Database, status: str, left: int) -> None:
    endpoint(db, "a")
    brought_to(db, None)
    aged(db, 2, status=status)

    pruning.prune(db, older_s=DAY_S)

    assert counts(db)[:2] == (left, left)


def test_a_disabled_endpoint_holds_nothing_back(db: Database) -> None:
    endpoint(db, "a")
    brought_to(db, None)
    aged(db, 2, status="pending")
    with db.write() as session:
        session.execute(update(EndpointRow).values(disabled_at=now()))

    assert pruning.prune(db, older_s=DAY_S) == 2


@pytest.mark.parametrize("inbox", [None, "press"])
def test_events_about_a_model_or_an_endpoint_are_numbered_on(db: Database, inbox: str | None) -> None:
    for _ in range(3):
        with db.write() as session:
            sequence = outbox.next_sequence(session, "green/1")
            outbox.announce(session, "model.promoted" if inbox is None else "endpoint.disabled", "green/1", sequence, {}, inbox=inbox)
    aged(db, 2)

    assert pruning.prune(db, older_s=DAY_S) == 2
    with db.read() as session:
        assert outbox.next_sequence(session, "green/1") == 4


def test_many_go_in_several_transactions_and_runs(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(pruning, "AT_ONCE", 2)
    monkeypatch.setattr(pruning, "BUDGET_S", 3.0)
    monkeypatch.setattr(pruning, "monotonic", lambda: float(next(clock)))  # it begins at 0 and is looked at before each of two
    for _ in range(3):
        brought_to(db, None)
    aged(db, 2)

    assert [pruning.prune(db, older_s=DAY_S) for _ in range(3)] == [4, 2, 0]


@pytest.mark.parametrize(("kept_s", "left"), [(0.0, 2), (DAY_S, 0), (3 * DAY_S, 2)])
def test_upkeep_prunes_as_it_is_set(db: Database, monkeypatch: pytest.MonkeyPatch, kept_s: float, left: int) -> None:
    brought_to(db, None)
    aged(db, 2)
    monkeypatch.setattr(upkeep, "settings", lambda: Settings(events_kept_s=kept_s))
    monkeypatch.setattr(upkeep, "database", lambda _: db)
    monkeypatch.setattr(upkeep.scratch, "tidy", lambda _: 0)
    monkeypatch.setattr(upkeep.timetable, "tidy", lambda *_: 0)

    assert upkeep.tidy() == 2 - left
    assert counts(db)[0] == left
