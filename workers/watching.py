"""A program of a training looked after until it ends: heard, asked to stop if the worker is ending, and ended where it hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from threading import Lock

from workers import calm, launching, tether
from workers.launching import Outcome

LOOK_S = 0.2
MOMENT_S = 2.0
"""How much later than its trainer a worker may hear of an end that every process was asked for at once."""
LAST_LINES = 40


class Watch:
    """Over the programs of one training, one after the other, in its `folder`; what they say is in the file `log` there.

    `stopping`: whether the worker has been asked to end. A program then has `stop_s` to end by itself.
    """

    def __init__(self, folder: Path, stopping: Callable[[], bool], stop_s: float) -> None:
        self._folder, self._stopping, self._stop_s = folder, stopping, stop_s
        self._heard = time.monotonic()
        self._length = 0
        self._asking, self._asked = Lock(), 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        look: Callable[[], None],
        *,
        what: str = "The trainer",
        stall_s: float,
        nice: int = 0,
        descriptors: Sequence[int] = (),
    ) -> Outcome | None:
        """Run a program that dies with us until it ends; None: it was asked to stop and did not in time.

        `look` is called all the time; if it takes its own, it says how it gets on by `getting_on`. Who is not heard for `stall_s` fails.
        """
        tied = [sys.executable, "-S", "-E", tether.__file__, str(self._folder / "alive.lock")]
        words = [*tied, *([sys.executable, "-S", "-E", calm.__file__, str(nice)] if nice else []), *command]
        self._length, self._asked = 0, 0.0
        self.hear()
        with (self._folder / "log").open("wb") as output:
            process = subprocess.Popen(
                words,
                env=dict(environment),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=tuple(descriptors),
            )
        self._process = process
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return launching.outcome_of(process.wait(LOOK_S), self.said().splitlines())
                look()
                self._ask()
                if process.poll() is not None:  # during a look that took longer than it was given itself
                    continue
                if self._asked and time.monotonic() - self._asked > self._stop_s:
                    return None
                if time.monotonic() - self._heard > stall_s:
                    return Outcome("failed", f"{what} said nothing for {stall_s:g} s.")
        finally:
            self._process = None
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, SIGKILL)
                process.wait()

    def hear(self) -> None:
        """It said something, or nobody listened until now."""
        self._heard = time.monotonic()

    def hear_log(self) -> None:
        """Whether it said something is seen by its log alone."""
        length = (self._folder / "log").stat().st_size
        if length != self._length:
            self._length = length
            self.hear()

    def getting_on(self) -> None:
        """Whoever looks has not finished, and gets on. Any thread may say so; it raises nothing."""
        self.hear()
        self._ask()

    def _ask(self) -> None:
        """Ask the program to stop, once, if the worker is ending."""
        with self._asking:
            process = self._process
            if process is not None and not self._asked and self._stopping():
                self._asked = time.monotonic()
                with suppress(OSError):
                    process.terminate()

    def ending(self, outcome: Outcome) -> bool:
        """Whether a program ended because the worker is to."""
        until = time.monotonic() + (MOMENT_S if outcome.state == "stopped" else 0.0)
        while not self._stopping() and time.monotonic() < until:
            time.sleep(LOOK_S)
        return self._stopping()

    def said(self) -> str:
        """The last lines of the log."""
        try:
            with (self._folder / "log").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-LAST_LINES:])
        except FileNotFoundError:
            return ""
