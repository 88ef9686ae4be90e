"""Being asked to stop by a signal."""

from __future__ import annotations

import _thread
from collections.abc import Callable
from threading import Event


def setting(event: Event) -> Callable[[int, object], None]:
    """A signal handler that sets the event. Not by itself: it may have interrupted whoever holds the event's lock, for which it would
    wait for ever; nor through `threading.Thread`, whose start takes a lock as well."""

    def heard(number: int, frame: object) -> None:
        _thread.start_new_thread(event.set, ())

    return heard
