"""What a queue costs: a chain of three empty tasks on Celery as the product sets it, on Celery as it comes, and on dramatiq.

In turns, on one Valkey started as the product starts it, each with two worker processes of one thread and a sender of its own.
Processor time is that of all programs: sender, worker, Valkey. `python -m tests.benchmarks.other_queue` measures this alone.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from pipeline.jobs import STAGES
from pipeline.settings import PREFIX, Settings
from tests.benchmarks import accounting
from tests.benchmarks.chain_end import BROKER, END
from workers import programs
from workers.place import Place
from workers.ports import LOOPBACK, Ports
from workers.queues import queues

ROOT = Path(__file__).parents[2]
PROCESSES = 2
WAITING = 200
"""So many messages wait before a worker comes: for the broker's bytes a job, and for everybody to be warm when it counts."""
PATIENCE_S = 120.0

_CELERY = ("-m", "celery", "-A")
_POOL = ("worker", "-P", "prefork", "-c", str(PROCESSES))
_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO")
_LISTENED = ",".join(name for stage in STAGES for name in queues(stage))
CHAINS: dict[str, tuple[str, tuple[str, ...]]] = {
    "product": ("tests.benchmarks.chain_product", (*_CELERY, "tests.benchmarks.chain_product", *_POOL, *_QUIET, "-Q", _LISTENED)),
    "celery": ("tests.benchmarks.chain_celery", (*_CELERY, "tests.benchmarks.chain_celery", *_POOL)),
    "dramatiq": (
        "tests.benchmarks.chain_dramatiq",
        ("-m", "dramatiq", "tests.benchmarks.chain_dramatiq", "--processes", str(PROCESSES), "--threads", "1"),
    ),
}
"""The module of each chain, which sends, and the arguments of the interpreter that make its worker."""


def measure(jobs: int, rounds: int) -> dict[str, Any]:
    """Each chain in its turn, `rounds` times `jobs` jobs: medians with the lowest and the highest."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in CHAINS}
    with tempfile.TemporaryDirectory(prefix="unmask-queues-") as temporary, _valkey(Path(temporary)) as (server, url):
        for _ in range(rounds):
            for name in CHAINS:
                turns[name].append(_turn(name, Path(temporary), server, url, jobs))
    return {"jobs": jobs, "rounds": rounds, "processes": PROCESSES, **{name: _summary(taken) for name, taken in turns.items()}}


def said(figures: dict[str, Any]) -> str:
    """The line of the summary."""
    chains = ", ".join(f"{name} {figures[name]['cpu_ms']} ms ({figures[name]['jobs_per_s']}/s)" for name in CHAINS)
    ledger = figures.get("ledger")
    return f"{chains} a chain of three empty tasks" + (f"; the ledger {ledger['ours_ms']} + {ledger['database_ms']} ms" if ledger else "")


def _summary(taken: list[dict[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, digits in (("cpu_ms", 2), ("jobs_per_s", 1), ("message_bytes", 0)):
        values = [turn[name] for turn in taken]
        figures[name] = round(statistics.median(values), digits or None)
        figures[f"{name}_spread"] = [round(min(values), digits or None), round(max(values), digits or None)]
    spent = {name: statistics.median(turn["by_program"][name] for turn in taken) for name in taken[0]["by_program"]}
    return figures | {"cpu_ms_by_program": {name: round(value, 2) for name, value in spent.items()}}


def _turn(name: str, folder: Path, server: int, url: str, jobs: int) -> dict[str, Any]:
    module, worker = CHAINS[name]
    end = folder / "end"
    end.unlink(missing_ok=True)
    os.mkfifo(end)
    pipe = os.open(end, os.O_RDWR | os.O_NONBLOCK)  # also a writer: that of the last worker is not the end
    environment = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    environment |= {BROKER: url, END: str(end), f"{PREFIX}BROKER_URL": url, f"{PREFIX}DATA_DIR": str(folder / "data")}
    log = folder / f"{name}.log"
    try:
        with (
            Redis.from_url(url) as broker,
            log.open("wb") as errors,
            _started(["-m", "tests.benchmarks.chain_end", module], environment, errors, spoken_to=True) as sender,
        ):
            broker.flushall()
            waiting = _send(sender, 1)  # opens its connections
            before = _held(broker)
            waiting |= _send(sender, WAITING)
            bytes_a_job = (_held(broker) - before) / WAITING
            with _started(list(worker), environment, errors) as consumer:
                assert _arrived(pipe, len(waiting), log) == waiting, f"{name} loses jobs"
                roots = {"sender": sender.pid, "worker": consumer.pid, "valkey": server}
                looks, began = {root: accounting.look([pid]) for root, pid in roots.items()}, time.monotonic()
                _ask(sender, jobs)
                arrived = _arrived(pipe, jobs, log)
                took = time.monotonic() - began
                spent = {root: sum(accounting.used(looks[root], accounting.look([pid])).values()) for root, pid in roots.items()}
                assert arrived == _answer(sender), f"{name} loses jobs"
    finally:
        os.close(pipe)
    by_program = {root: seconds * 1000 / jobs for root, seconds in spent.items()}
    return {"cpu_ms": sum(by_program.values()), "by_program": by_program, "jobs_per_s": jobs / took, "message_bytes": bytes_a_job}


def _held(broker: Any) -> int:
    """Bytes of all its keys: what it keeps for who is connected is no message's."""
    return sum(int(broker.memory_usage(key, samples=0) or 0) for key in broker.scan_iter(count=1000))


def _ask(sender: subprocess.Popen[str], jobs: int) -> None:
    assert sender.stdin is not None
    sender.stdin.write(f"{jobs}\n")
    sender.stdin.flush()


def _answer(sender: subprocess.Popen[str]) -> set[str]:
    assert sender.stdout is not None
    return set(json.loads(sender.stdout.readline()))


def _send(sender: subprocess.Popen[str], jobs: int) -> set[str]:
    _ask(sender, jobs)
    return _answer(sender)


def _arrived(pipe: int, jobs: int, log: Path) -> set[str]:
    """The ids of so many jobs, read from the pipe as they come to their end."""
    until, told = time.monotonic() + PATIENCE_S, b""
    while (came := told.count(b"\n")) < jobs:
        if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            raise TimeoutError(f"{came} of {jobs} chains came to their end within {PATIENCE_S:g} s.\n{log.read_text()[-2000:]}")
        told += os.read(pipe, 65536)
    return set(told.decode().split())


@contextmanager
def _started(arguments: list[str], environment: dict[str, str], log: Any, *, spoken_to: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A Python program, ended with the context; `spoken_to`: by its standard input and output."""
    ears: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log}
    if spoken_to:
        ears = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, stderr=log, text=True, **ears)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def _valkey(folder: Path) -> Iterator[tuple[int, str]]:
    """A Valkey as the product starts it: its process id and its URL."""
    place = Place.at(folder / "valkey")
    with Ports(programs.PORTS, {}, paired=programs.PAIRED) as reserved:
        settings, secrets = Settings(data_dir=place.root), place.secrets()
        programs.write_configuration(place, settings, reserved.numbers, secrets)
        [valkey] = [program for program in programs.programs(place, settings, reserved.numbers) if program.name == "valkey"]
        url = f"redis://:{secrets['valkey_password']}@{LOOPBACK}:{reserved.numbers['valkey']}/0"
        with (place.logs / "valkey.log").open("wb") as log:
            process = subprocess.Popen(valkey.command, stdout=log, stderr=log, cwd=place.run)
        try:
            _await(url)
            yield process.pid, url
        finally:
            process.terminate()
            process.wait()


def _await(url: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            with Redis.from_url(url) as broker:
                broker.ping()
            return
        except RedisError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    print(json.dumps(measure(*(int(number) for number in sys.argv[1:3] or (1000, 3))), indent=1))
