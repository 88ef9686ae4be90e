"""Bounds around code that hostile bytes are let loose on: what they may cost is one attempt, not the worker.

Decoding runs in a child of a prefork pool. Inside `confined` that process may not take much more memory than it has, and is
ended by the kernel if it is not out again in time, even while it hangs in native code; a crash ends it as well. The worker
starts another child, and `workers.bereavement` writes the attempt down.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 1.2
"""So many seconds by the clock for each second of the processor, before a decoder counts as hanging: on a busy machine an
honest large file may take ten times as long as its work. Three attempts at a file that hangs end within a minute."""
_HOME = os.getpid()
"""Imported before a pool forks, this is the worker's own process, which nothing here may end."""


@contextmanager
def confined(seconds: float, room: int) -> Iterator[None]:
    """At most `seconds` of processor time, `PATIENCE` times that by the clock, and `room` bytes more than now.

    Beyond the memory it is MemoryError, beyond the time the end of the process, by SIGPROF or SIGALRM. The soft limit of the
    stage, an exception out of SIGUSR1, waits until the block is left: raised in a decoder it looks like a damaged file.

    Does nothing in a process that has not been forked for this work, and in threads: there it would hit others.
    """
    if os.getpid() == _HOME or threading.current_thread() is not threading.main_thread():
        yield
        return
    with _undisturbed(), _bounded(seconds, room):
        yield


@contextmanager
def _bounded(seconds: float, room: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_least(_taken() + room, *before), before[1]))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """SIGUSR1 is heard when the block is left."""
    late: list[int] = []
    # a mask would not do: the kernel hands it to another thread, say the lease's, and Python calls the handler in this one
    former = signal.signal(signal.SIGUSR1, lambda number, _: late.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, former)
        if late:
            signal.raise_signal(signal.SIGUSR1)


def _taken() -> int:
    """Bytes of writable memory this process has by now, as RLIMIT_DATA counts them."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    return pages * resource.getpagesize()


def _least(*limits: int) -> int:
    return min(limit for limit in limits if limit != resource.RLIM_INFINITY)
