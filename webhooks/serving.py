"""The HTTP server of the web process: whoever waits for an answer when it is told to stop still gets it."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from threading import Event
from typing import Any

import waitress
from waitress import wasyncore

from pipeline.stopping import setting

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""How often it is looked whether to stop."""


def serve(application: Callable[..., Any], *, patience_s: float, **adjustments: Any) -> None:
    """Serve until SIGTERM or SIGINT; then accept no more connections, and end as soon as what is under way is answered,
    after `patience_s` seconds at the latest. `adjustments`: those of waitress. Call it from the main thread."""
    stopping = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, setting(stopping))
    open_: dict[int, Any] = {}
    server = waitress.create_server(application, map=open_, **adjustments)
    server.print_listen("Serving on http://{}:{}")
    while not stopping.is_set():
        wasyncore.loop(timeout=LOOK_S, use_poll=True, map=open_, count=1)
    for listening in [one for one in open_.values() if one.accepting]:
        listening.del_channel()
        listening.socket.close()
    until = time.monotonic() + patience_s
    while (left := until - time.monotonic()) > 0 and any(_busy(one) for one in list(open_.values())):
        wasyncore.loop(timeout=min(LOOK_S, left), use_poll=True, map=open_, count=1)
    if unanswered := sum(_busy(one) for one in list(open_.values())):
        log.warning("%d requests are left without an answer", unanswered)
    server.task_dispatcher.shutdown(timeout=0)


def _busy(one: Any) -> bool:
    """Whether a connection has a request that is not wholly read, worked on or answered."""
    return bool(getattr(one, "requests", ()) or getattr(one, "request", None) or getattr(one, "total_outbufs_len", 0))
