"""A worker that is connected and takes no messages is told from one that is busy, idle, or without its broker."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery.worker import state
from redis import Redis

from pipeline.settings import to_environment
from tests.fixtures.stores import Stores, wait_until
from workers.pulse import DEAF, Pulse

SILENT_S = 0.3
QUEUE = "pulse.test"


@pytest.fixture
def broker(stores: Stores) -> Iterator[Redis]:  # type: ignore[type-arg]
    """The session's Valkey, with one message in a queue that nobody reads."""
    with Redis.from_url(stores.settings.broker_url) as client:
        client.delete(QUEUE)
        client.lpush(QUEUE, "{}")
        yield client
        client.delete(QUEUE)


def deaf(pulse: Pulse, seconds: float = 3 * SILENT_S) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if pulse.look():
            return True
        time.sleep(0.02)
    return False


def pulse_of(url: str) -> Pulse:
    return Pulse(url, ["another", QUEUE], end=lambda: None, heard=lambda: 7, silent_s=SILENT_S)


def test_whoever_takes_nothing_of_what_waits_is_deaf(stores: Stores, broker: Redis) -> None:  # type: ignore[type-arg]
    ended = threading.Event()
    pulse = Pulse(stores.settings.broker_url, [QUEUE], end=ended.set, heard=lambda: 7, silent_s=SILENT_S)
    began = time.monotonic()
    pulse.run(look_s=0.02)
    assert ended.is_set()
    assert time.monotonic() - began >= SILENT_S


def test_an_empty_queue_is_nobodys_fault(stores: Stores, broker: Redis) -> None:  # type: ignore[type-arg]
    broker.delete(QUEUE)
    assert not deaf(pulse_of(stores.settings.broker_url))


def test_a_broker_that_is_away_is_nobodys_fault() -> None:
    assert not deaf(pulse_of("redis://127.0.0.1:1/0"))


def test_whoever_is_at_work_is_not_deaf(stores: Stores, broker: Redis, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    monkeypatch.setattr(state, "active_requests", {"a request"})
    assert not deaf(pulse_of(stores.settings.broker_url))


def test_whoever_takes_one_now_and_then_is_not_deaf(stores: Stores, broker: Redis) -> None:  # type: ignore[type-arg]
    now_and_then = Pulse(
        stores.settings.broker_url, [QUEUE], end=lambda: None, heard=lambda: int(time.monotonic() / SILENT_S * 2), silent_s=SILENT_S
    )
    assert not deaf(now_and_then)


def test_whoever_was_held_up_gets_another_chance(stores: Stores, broker: Redis) -> None:  # type: ignore[type-arg]
    pulse = pulse_of(stores.settings.broker_url)
    assert not pulse.look()
    time.sleep(2 * SILENT_S)
    assert not pulse.look()
    assert deaf(pulse)


def test_a_worker_that_is_told_to_stop_is_watched_no_longer(stores: Stores, broker: Redis, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    monkeypatch.setattr(state, "should_stop", 0)
    Pulse(stores.settings.broker_url, [QUEUE], end=lambda: pytest.fail("it ended"), heard=lambda: 7, silent_s=0).run(look_s=0.01)


def test_a_real_worker_whose_ears_are_closed_ends_and_says_why(stores: Stores, broker: Redis, tmp_path: Path) -> None:  # type: ignore[type-arg]
    """It is connected and ready, and then its event loop never looks again: as after a broker's return."""
    module = tmp_path / "deaf.py"
    module.write_text(
        "import time\n"
        "from celery import Celery\n"
        "from celery.signals import worker_ready\n"
        "from workers import pulse\n"
        f"app = Celery(broker={stores.settings.broker_url!r})\n"
        f"app.conf.update(task_default_queue={QUEUE!r}, broker_connection_retry_on_startup=True)\n"
        "app.conf.worker_consumer = 'workers.reconnecting:Reconnecting'\n"
        "@worker_ready.connect\n"
        "def ready(sender, **_):\n"
        "    pulse.watch(sender, silent_s=1.0, look_s=0.1)\n"
        "    sender.hub.call_soon(time.sleep, 600)\n"
    )
    command = [sys.executable, "-m", "celery", "-A", "deaf", "worker", "-P", "prefork", "-c", "1", "-l", "WARNING", "--without-gossip"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", **to_environment(stores.settings)}
    broker.delete(QUEUE)
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_until(lambda: bool(broker.lpush(QUEUE, "{}")), "a message")
        assert worker.wait(30) == DEAF
    finally:
        worker.kill()
        worker.wait()
    assert f"Messages wait in {QUEUE}" in (tmp_path / "log").read_text()
