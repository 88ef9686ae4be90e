"""How a worker comes back to a broker that was away."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from celery.worker.consumer import Consumer

AGAIN_S, MOST_S = 1.0, 5.0
"""How long it waits before it tries again: at first, and at most."""


class Reconnecting(Consumer):
    """Celery's consumer, which after some minutes would look for its broker only every half minute. `heard`: messages so far."""

    heard = 0

    def create_task_handler(self, *arguments: Any, **more: Any) -> Callable[[Any], Any]:
        """What is called with each message; it counts them, also those that have expired and are dropped."""
        handle = super().create_task_handler(*arguments, **more)

        def heard(message: Any) -> Any:
            self.heard += 1
            return handle(message)

        return heard

    def ensure_connected(self, conn: Any) -> Any:
        """Wait for the broker as long as it takes; the connection."""
        conn.ensure_connection = partial(conn.ensure_connection, interval_start=AGAIN_S, interval_step=AGAIN_S, interval_max=MOST_S)
        return super().ensure_connected(conn)
