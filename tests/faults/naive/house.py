"""The naive chain under the same faults: its worker, killed and started again, on the same servers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from redis import Redis

from tests.faults.house import ROOT, House, Impatient, until
from tests.faults.pictures import portrait

QUIET_S = 30.0
"""When no result has come for so long, none comes any more, or only after the hour of Celery's visibility timeout."""


class Naive:
    """A context: one worker of the naive chain, with two children, in the broker's second database."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._broker = house.settings.broker_url.rpartition("/")[0] + "/1"
        self._environment = {**house.environment_of(house.settings), "NAIVE_BROKER": self._broker}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Naive:
        with Redis.from_url(self._broker) as broker:
            broker.flushdb()
        self.start()
        self.send(first := [f"warm-{time.time_ns()}.jpg"])
        until(lambda: not self.lost(first), "the naive chain's first result", 90)
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the worker, as its user would."""
        command = [sys.executable, "-m", "celery", "-A", "tests.faults.naive.app", "worker", "-P", "prefork", "-c", "2", "-l", "ERROR"]
        with (self._house.place.logs / "naive.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the worker and its children."""
        assert self._process is not None
        if number is signal.SIGKILL:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)
        self._process.wait()

    def kill_child(self, chance: random.Random) -> None:
        """End one of its children."""
        assert self._process is not None
        listed = subprocess.run(
            ["/bin/sh", "-c", f"cat /proc/{self._process.pid}/task/*/children"], capture_output=True, text=True, check=False
        )
        if children := listed.stdout.split():
            os.kill(int(chance.choice(children)), signal.SIGKILL)

    def send(self, keys: list[str]) -> None:
        """Upload, and send the chain of each on its way."""
        from celery import Celery, chain

        for number, key in enumerate(keys):
            self._house.put(f"naive/{key}", portrait(number))
        with Celery("naive-client", broker=self._broker, set_as_current=False) as app:
            for key in keys:
                steps = [app.signature(f"tests.faults.naive.app.{name}") for name in ("extract", "classify", "render")]
                chain(steps[0].clone((f"naive/{key}",)), *steps[1:]).apply_async()

    def results(self, keys: list[str]) -> dict[str, int]:
        """How many result sets each upload has."""
        there = [one.key for one in self._house.store.listing(self._house.settings.results_bucket, "naive/")]
        return {key: sum(name.startswith(f"naive/naive/{key}/") and name.endswith(".json") for name in there) for key in keys}

    def lost(self, keys: list[str]) -> int:
        """Uploads without a result so far."""
        return sum(not number for number in self.results(keys).values())

    def quiet(self, keys: list[str]) -> dict[str, Any]:
        """Wait until all results are there, or none has come for QUIET_S; then count."""
        before, moved = -1, time.monotonic()
        while (lost := self.lost(keys)) and time.monotonic() - moved < QUIET_S:
            if lost != before:
                before, moved = lost, time.monotonic()
            time.sleep(0.3)
        found, stuck = self.results(keys), self.stuck()
        return {
            "n": len(keys),
            "lost": max(0, sum(not one for one in found.values()) - stuck),
            "stuck": stuck,
            "duplicates": sum(max(0, one - 1) for one in found.values()),
        }

    def stuck(self) -> int:
        """Messages that are still there: a dead worker had taken them, and they come back after Celery's visibility timeout of
        an hour; or they wait for a worker that no longer hears."""
        with Redis.from_url(self._broker) as broker:
            return int(broker.hlen("unacked")) + int(broker.llen("celery"))


def under(house: House, fault: str, n: int, seed: int) -> dict[str, Any]:
    """`n` faults of a kind (`worker`, `child`, `flush`, `broker`, `poison`, `drain`) while four uploads for each go through."""
    chance = random.Random(seed)
    prefix = f"{fault}-{int(time.time())}"
    keys: list[str] = []
    with Naive(house) as naive:
        if fault == "poison":
            keys = [
                f"{prefix}/{number:04}-{('segfault', 'hang')[number // 20 % 2] if number % 20 == 0 else 'good'}.jpg" for number in range(n)
            ]
            naive.send(keys)
            return {**naive.quiet(keys), "faults": sum("good" not in key for key in keys)}
        for number in range(n):
            fresh = [f"{prefix}/{number:04}-{part}.jpg" for part in range(4)]
            naive.send(fresh)
            keys += fresh
            time.sleep(0.05 + 0.3 * chance.random())
            if fault == "child":
                naive.kill_child(chance)
            elif fault in ("worker", "drain"):
                naive.kill(signal.SIGKILL if fault == "worker" else signal.SIGTERM)
                naive.start()
            elif fault == "flush":
                with house.broker() as client:
                    client.execute_command("FLUSHALL")
            else:
                house.kill("valkey")
                house.await_broker()
            with suppress(Impatient):
                until(lambda fresh=fresh: not naive.lost(fresh), "their results", 6)  # type: ignore[misc]
        return {**naive.quiet(keys), "faults": n}
