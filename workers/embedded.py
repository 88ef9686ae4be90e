"""The whole product on one machine, from wheels alone: start it, find it, stop it.

`python -m workers.embedded` does what `unmask up` does.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event

from pipeline.settings import Settings, SettingsError, from_environment
from pipeline.stopping import setting
from workers.place import environment_of
from workers.stack import Stack, StackError

__all__ = ["StackError", "running", "stack", "up"]

Say = Callable[[str], None]


def running(data_dir: Path) -> Settings | None:
    """The settings of the stack that is up, and ready, on a data directory; None if none is."""
    environment = environment_of(data_dir)
    return from_environment(environment) if environment else None


def up(settings: Settings, say: Say = print) -> None:
    """Start the stack, stay until SIGINT or SIGTERM, then let it drain and stop. A second signal ends it at once.

    Raises StackError.
    """
    stopping = Event()
    live = Stack(settings, say, stopping)

    stop, times = setting(stopping), count(1)

    def asked(number: int, frame: object) -> None:
        if next(times) > 1:
            live.kill()
        stop(number, frame)

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with live:
            if not stopping.is_set():
                say(f"Unmask is up: {live.settings.url}  (Ctrl-C stops it)")
                live.watch()
            say("stopping: what is under way is finished first")
        say("stopped")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stack(settings: Settings, say: Say = print) -> Iterator[Settings]:
    """The stack for the length of a block, ready; gives the settings to reach it with. Raises StackError.

    Enter it from a thread that lives as long as the block: the stack dies with that thread.
    """
    with Stack(settings, say, Event()) as live:
        yield live.settings


def main() -> int:
    """Run the stack with the settings of the environment."""
    try:
        up(from_environment(), lambda line: print(line, flush=True))  # noqa: T201
    except (StackError, SettingsError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
