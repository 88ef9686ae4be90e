"""File locks that end with the processes that hold them."""

from __future__ import annotations

import fcntl
import time


def locked(descriptor: int, kind: int) -> bool:
    """Lock a file, `fcntl.LOCK_EX` or `LOCK_SH`, without waiting; whether that worked."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def locked_within(seconds: float, descriptor: int, kind: int) -> bool:
    """The same, tried again for so many seconds."""
    until = time.monotonic() + seconds
    while not locked(descriptor, kind):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
