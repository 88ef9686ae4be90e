"""A worker that has fallen silent ends itself, and whoever looks after it starts another.

After its broker was away, Celery's consumer on Redis may stay silent for ever (celery/celery#8030, #8091 and others): it is
connected, messages wait, and it takes none. Nothing in it would notice; from outside it looks idle.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from celery.worker import state
from redis import Redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

LOOK_S = 2.0
SILENT_S = 15.0
"""So long messages wait, the broker answers, and a worker with nothing to do takes none: then it is deaf."""
DEAF = 75
"""Its exit status: EX_TEMPFAIL of sysexits.h."""


class Pulse:
    """Watches a worker from a thread of its own. `heard`: how many messages it has taken; `end` is called once it is deaf."""

    def __init__(
        self, broker_url: str, queues: Iterable[str], *, end: Callable[[], None], heard: Callable[[], int], silent_s: float = SILENT_S
    ) -> None:
        self._queues = tuple(queues)
        self._silent_s = silent_s
        self._end = end
        self._heard = heard
        self._broker = Redis.from_url(broker_url, socket_timeout=5, socket_connect_timeout=3)
        self._taken, self._since, self._looked = -1, time.monotonic(), time.monotonic()

    def run(self, look_s: float = LOOK_S) -> None:
        """Look until the worker is deaf, or told to stop."""
        while state.should_stop is None and state.should_terminate is None:
            if self.look():
                self._end()
                return
            time.sleep(look_s)

    def look(self) -> bool:
        """Whether the worker is deaf by now."""
        taken, at = self._heard(), time.monotonic()
        alive = taken != self._taken or bool(state.active_requests) or bool(state.reserved_requests)
        stood = at - self._looked > self._silent_s / 2  # the process itself was held up: nobody had a chance to hear
        self._taken, self._looked = taken, at
        if alive or stood or not self._waiting():
            self._since = at
        return at - self._since >= self._silent_s

    def _waiting(self) -> bool:
        try:
            return any(self._broker.llen(name) for name in self._queues)
        except (RedisError, OSError):
            return False


def watch(consumer: Any, *, silent_s: float = SILENT_S, look_s: float = LOOK_S) -> None:
    """Watch the worker of a consumer that is ready."""
    names = list(consumer.app.amqp.queues.consume_from)
    pulse = Pulse(consumer.app.conf.broker_url, names, end=lambda: _end(names), heard=lambda: consumer.heard, silent_s=silent_s)
    threading.Thread(target=pulse.run, args=(look_s,), name="pulse", daemon=True).start()


def _end(names: list[str]) -> None:
    log.critical("Messages wait in %s, and this worker has nothing to do and takes none: it ends, to be started again", ", ".join(names))
    logging.shutdown()
    os._exit(DEAF)  # its event loop would not hear of anything gentler; it has no task, and webhooks in the air go out again
