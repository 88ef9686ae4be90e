"""A worker looks for a broker that is away every few seconds, however long it has been away."""

from __future__ import annotations

import socket

import pytest
from kombu import Connection

from workers.app import app
from workers.reconnecting import MOST_S, Reconnecting


class Enough(Exception):
    """So many tries are enough for a test."""


def test_a_worker_never_looks_for_its_broker_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    waits: list[float] = []

    def passing(seconds: float) -> None:
        waits.append(seconds)
        if sum(waits) > 300:
            raise Enough

    monkeypatch.setattr("kombu.utils.functional.sleep", passing)
    consumer = Reconnecting.__new__(Reconnecting)
    consumer.app, consumer.first_connection_attempt = app, False

    with pytest.raises(Enough):
        consumer.ensure_connected(Connection(f"redis://127.0.0.1:{port}/0"))

    tries = waits.count(0.0)  # the wait before each is slept in whole seconds, and then what is left
    assert tries >= 300 / MOST_S
    assert app.conf.worker_consumer == f"{Reconnecting.__module__}:{Reconnecting.__name__}"
