"""How a worker comes back to a broker that was away."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery.worker.consumer import Consumer

AGAIN_S, MOST_S = 1.0, 5.0
"""How long it waits before it tries again: at first, and at most."""


class Reconnecting(Consumer):
    """Celery's consumer, which after some minutes would look for its broker only every half minute."""

    def ensure_connected(self, conn: Any) -> Any:
        """Wait for the broker as long as it takes; the connection."""
        conn.ensure_connection = partial(conn.ensure_connection, interval_start=AGAIN_S, interval_step=AGAIN_S, interval_max=MOST_S)
        return super().ensure_connected(conn)
