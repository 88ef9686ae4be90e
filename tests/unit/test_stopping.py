"""A signal may come while the very lock that is needed to tell of it is held."""

from __future__ import annotations

import threading

from pipeline.stopping import setting


def test_the_handler_does_not_wait_for_whom_it_interrupted() -> None:
    event = threading.Event()
    heard = threading.Thread(target=setting(event), args=(15, None), daemon=True)

    with event._cond:  # type: ignore[attr-defined]  # as in the middle of `wait`
        heard.start()
        heard.join(5)
        assert not heard.is_alive()
        assert not event.is_set()

    assert event.wait(5)
