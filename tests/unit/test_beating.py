"""Beat: what is due is sent once, and nothing is looked at again and again until it is."""

from __future__ import annotations

import time
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.beat import Service

from workers import app as application
from workers import doctor
from workers.app import app
from workers.beating import Punctual


class Clocked(Celery):
    """An application whose clock stands still unless it is set."""

    at = datetime(2026, 11, 27, 12, tzinfo=timezone.utc)

    def now(self) -> datetime:
        return self.at


def test_it_sleeps_until_a_task_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    beaten = Celery("beaten", broker="memory://", set_as_current=False)
    beaten.conf.beat_schedule = {"often": {"task": "often", "schedule": 0.15}}
    beat = Punctual(app=beaten)
    monkeypatch.setattr(beat, "apply_entry", lambda entry, producer: sent.append(entry.task))
    looks, ends = 0, time.monotonic() + 1
    while time.monotonic() < ends:
        looks += 1
        time.sleep(max(0, beat.tick()))
    assert 4 <= len(sent) <= 7
    assert looks <= 3 * len(sent)


def test_it_is_the_scheduler_that_beat_takes() -> None:
    assert isinstance(Service(app, scheduler_cls=app.Beat().scheduler_cls).get_scheduler(lazy=True), Punctual)


@pytest.mark.parametrize("back_s", [1.5, 90, 7200])
def test_a_clock_that_is_set_back_stops_no_task_for_longer_than_its_period(back_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    beaten = Clocked("beaten", broker="memory://", set_as_current=False)
    beaten.conf.beat_schedule = {"often": {"task": "often", "schedule": 1.0}, "seldom": {"task": "seldom", "schedule": 60.0}}
    beat = Punctual(app=beaten)
    monkeypatch.setattr(beat, "apply_entry", lambda entry, producer: sent.append(entry.task))

    def run(seconds: float) -> None:
        """As beat's service does, which sleeps by a clock of its own."""
        ends = beaten.at + timedelta(seconds=seconds)
        while beaten.at < ends:
            beaten.at += timedelta(seconds=min(beat.tick() + 0.001, 10))

    run(70)
    assert (55 < sent.count("often") <= 70, sent.count("seldom")) == (True, 1)
    sent.clear()
    beaten.at -= timedelta(seconds=back_s)
    run(2.5)
    assert "often" in sent
    run(60)
    assert 55 < sent.count("often") <= 65, "and not more often than it should"
    assert 1 <= sent.count("seldom") <= 2


def test_what_is_sent_to_upkeep_is_taken_by_machines_whose_clocks_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    for entry in app.conf.beat_schedule.values():
        assert entry["options"]["expires"] - entry["schedule"] > 2 * doctor.SKEW_S

    sent: list[Any] = []
    client = SimpleNamespace(set=lambda *_, **__: True)
    connection = SimpleNamespace(default_channel=SimpleNamespace(client=client))
    pool = SimpleNamespace(acquire=lambda block: nullcontext(connection))
    monkeypatch.setattr(application, "app", SimpleNamespace(pool=pool, signature=app.signature))
    monkeypatch.setattr(application, "_sent", lambda message, what: not sent.append(message))
    assert application.deliver_soon()
    [message] = sent
    assert message.options["expires"] > 2 * doctor.SKEW_S
