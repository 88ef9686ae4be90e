"""Celery's beat, without its haste: it wakes ten milliseconds before a task is due, and asks for the time until it is.

With eight tasks every few seconds that is more than half of what it costs. And a clock that is set back does not stop it.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from celery.beat import Scheduler

LATE_S = 0.002
"""Upkeep may run late. To be early is to look again and again."""
SET_BACK = timedelta(seconds=1)
"""How much later than now a task may have run last before the clock is taken to have been set back."""
LONG_AGO = datetime.fromtimestamp(0, timezone.utc)


class Punctual(Scheduler):
    """Keeps when what ran last in memory alone, and sleeps until the next is due."""

    def adjust(self, n: int, drift: float = LATE_S) -> float:
        """Seconds to wait for what is due in `n` seconds."""
        return super().adjust(n, drift)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due first, if anything is; seconds until the next look.

        What ran last at a time that is yet to come is due now. Celery would wait until that time has come again: it keeps when
        each task is due by the clock as it was, and asks no task before.
        """
        latest = self.app.now() + SET_BACK
        for entry in self.schedule.values():
            if entry.last_run_at is not None and entry.last_run_at > latest:
                entry.last_run_at = LONG_AGO
                self._heap = None  # made anew from the entries
        return super().tick(*args, **kwargs)
