"""Beat: what is due is sent once, and nothing is looked at again and again until it is."""

from __future__ import annotations

import time

import pytest
from celery import Celery
from celery.beat import Service

from workers.app import app
from workers.beating import Punctual


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
