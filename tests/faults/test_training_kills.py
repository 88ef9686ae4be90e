"""A training whose trainer and workers are killed at random points: it always completes, on one card at a time, from its checkpoints.

All is real but the size of the network: Celery workers, the trainer in a process of its own, photographs, Valkey, S3, the gate. Three
kills by default; TEST_LONG=1 makes them twenty. The seed is printed, and TEST_SEED sets it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from pipeline import classroom, trainings
from pipeline.database import Database, now
from pipeline.settings import Settings, to_environment
from pipeline.storage import Storage
from pipeline.tables.training import CardLeaseRow
from tests.fixtures.stores import wait_until
from tests.fixtures.trainings import told_events
from workers import keeping

ROOT = Path(__file__).resolve().parents[2]
LOOK = 5
DONE = ("step", "look", "checkpoint")
"""What tells of a step that is done."""
UPKEEP = """
import time
from pipeline.database import database
from pipeline.settings import settings
from workers import timetable
while True:
    timetable.look_after(database(settings().database), settings())
    time.sleep(0.2)
"""
pytestmark = [pytest.mark.tensorflow, pytest.mark.faces, pytest.mark.timeout(3600)]


class Workplace:
    """Machines with a train worker each, upkeep, and what the trainers saw."""

    def __init__(self, settings: Settings, probe: Path) -> None:
        self.settings, self.probe = settings, probe
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._logs = probe / "logs"
        self._logs.mkdir()

    def start(self, machine: str) -> None:
        """Start a machine's train worker, as supervisor would."""
        own = self.settings.model_copy(update={"data_dir": self.settings.data_dir / machine, "train_machine": machine})
        command = ["-m", "celery", "-A", "workers.train", "worker", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        command += [
            "--loglevel",
            "INFO",
            "-n",
            f"train-{machine}@%h",
            "-Q",
            "train",
            "-P",
            "prefork",
            "-c",
            "1",
            "--max-tasks-per-child",
            "1",
        ]
        self._running[machine] = self._begin(machine, command, own)

    def upkeep(self) -> None:
        self._running["upkeep"] = self._begin("upkeep", ["-c", UPKEEP], self.settings)

    def _begin(self, name: str, command: list[str], settings: Settings) -> subprocess.Popen[bytes]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("UNMASK_")}
        with (self._logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**clean, **to_environment(settings)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ask_to_end(self, machine: str) -> int:
        """SIGTERM, and the exit status."""
        self._running[machine].terminate()
        return self._running.pop(machine).wait(120)

    def kill(self, machine: str) -> None:
        """SIGKILL of the worker, and nothing else."""
        process = self._running.pop(machine)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    @property
    def seen(self) -> list[dict[str, Any]]:
        """What the trainers wrote down, in order."""
        path = self.probe / "seen.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []

    @property
    def said(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self._logs.iterdir()))


@pytest.fixture
def place(s3_settings: Settings, small_python: Path, sqlite_url: str, tmp_path: Path) -> Iterator[Workplace]:
    if find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    settings = s3_settings.model_copy(
        update={
            "database_url": sqlite_url,
            "train_python": str(small_python),
            "lease_s": 2.0,
            "train_retry_s": 0.1,
            "wake_after_s": 1.0,
            "train_max_attempts": 100,
        }
    )
    # kills may come faster than checkpoints, and this is not about giving up
    made = Workplace(settings, tmp_path / "probe")
    made.upkeep()
    yield made
    made.stop()


@pytest.fixture
def db(place: Workplace) -> Iterator[Database]:
    made = Database(place.settings.database)
    yield made
    made.dispose()


def ask(db: Database, faces: Path, steps: int) -> str:
    params = {"steps": steps, "look": LOOK, "stages": "32:1:.001", "pairs": 2, "makers": 0, "seed": 3, "threads": 1}
    training_id = trainings.ask(db, actor="cli", device="cpu", dataset=str(faces), params=params)
    assert training_id is not None
    return training_id


def until(true: Callable[[], bool], what: str, place: Workplace, db: Database, training_id: str, seconds: float = 240.0) -> None:
    """Wait, but no longer once the training has ended."""
    deadline = time.monotonic() + seconds
    while not true():
        row = classroom.one(db, training_id)
        assert row is not None
        assert row.finished_at is None, f"{row.status} before {what}: {row.reason}\n{row.error}\n{place.said}"
        assert time.monotonic() < deadline, f"{what} did not come: {row.status} {row.phase} {row.reason}\n{row.error}\n{place.said}"
        time.sleep(0.02)


def ended(db: Database, training_id: str, place: Workplace) -> None:
    def over() -> bool:
        row = classroom.one(db, training_id)
        return row is not None and row.finished_at is not None

    wait_until(over, "the end of the training", seconds=400)
    row = classroom.one(db, training_id)
    assert row is not None
    assert row.status == "done", f"{row.reason}\n{row.error}\n{place.said}"


def test_killed_at_random_points_it_completes_one_at_a_time_from_its_checkpoints(
    place: Workplace, db: Database, few_faces: Path, long: bool
) -> None:
    kills = 20 if long else 3
    seed = int(os.environ.get("TEST_SEED", time.time_ns() % 10**6))
    print(f"seed {seed}")
    began = time.monotonic()
    rng = random.Random(seed)
    targets = ["trainer", "worker", "both", *(rng.choice(["trainer", "worker", "child", "both"]) for _ in range(kills - 3))]
    rng.shuffle(targets)
    steps = 10 * kills + 25
    for machine in ("one", "two"):
        place.start(machine)
    training_id = ask(db, few_faces, steps)

    killed: list[tuple[str, int]] = []
    for target in targets:
        before = len(place.seen)
        wanted = before + 1 + rng.randint(0, 2 * LOOK)  # somewhere after its beginning

        def far_enough(before: int = before, wanted: int = wanted) -> bool:
            seen = place.seen
            return len(seen) >= wanted and any(one["what"] == "begin" for one in seen[before:])

        until(far_enough, f"the point to kill the {target} at", place, db, training_id)
        row = classroom.one(db, training_id)
        assert row is not None
        trainer = next(one["pid"] for one in reversed(place.seen) if one["what"] == "begin")
        machine = machine_of(db)
        if target == "child":
            os.kill(int(row.worker.rpartition(":")[2]), signal.SIGKILL)
        if target in ("trainer", "both"):
            os.kill(trainer, signal.SIGKILL)
        if target in ("worker", "both"):
            place.kill(machine)
        killed.append((target, len(place.seen)))
        print(killed[-1], flush=True)
        wait_until(lambda pid=trainer: not alive(pid), "the end of the trainer", seconds=30)  # type: ignore[misc]
        if target in ("worker", "both"):
            place.start(machine)
    ended(db, training_id, place)

    seen = place.seen
    assert [one for one in seen if one["what"] == "two at once"] == []
    begun = [(number, one) for number, one in enumerate(seen) if one["what"] == "begin"]
    lost = []
    for (first, _), (second, one) in pairwise(begun):
        reached = max((said["step"] for said in seen[first:second] if said["what"] in DONE), default=None)
        if reached is not None:
            lost.append(reached - one["step"])
    assert lost, "nothing was resumed"
    assert max(lost) <= LOOK, f"steps done again after each kill: {lost}"
    assert max(one["step"] for one in seen if one["what"] == "look") == steps
    row = classroom.one(db, training_id)
    assert row is not None
    assert row.runs >= kills
    assert [event.type for event in told_events(db, training_id)] == ["training.done"]
    points = [point["step"] for point in classroom.curve(db, training_id) if point["event"] == "look"]
    assert points == list(range(LOOK, steps + 1, LOOK)), "every look is on the curve, once"
    with db.read() as session:
        assert session.scalar(select(CardLeaseRow.card).where(CardLeaseRow.lease_until > now())) is None
    store, home = Storage(place.settings), keeping.home(training_id)
    wait_until(lambda: not list(store.listing(place.settings.models_bucket, home)), "all that was kept of it to go", seconds=30)
    kinds = Counter(target for target, _ in killed)
    print(f"seed {seed}, {kills} kills {dict(kinds)}: {killed}")
    took = time.monotonic() - began
    print(f"completed in {took:.0f} s and {row.runs} runs, never two at once; steps done again {lost}, at most {max(lost)}")


def test_a_worker_that_is_asked_to_end_leaves_a_checkpoint_and_another_goes_on(place: Workplace, db: Database, few_faces: Path) -> None:
    place.start("one")
    training_id = ask(db, few_faces, 60)
    until(lambda: any(one["what"] == "step" and one["step"] >= 7 for one in place.seen), "step 7", place, db, training_id)

    assert place.ask_to_end("one") == 0

    row = classroom.one(db, training_id)
    assert row is not None
    assert (row.status, row.attempts, row.worker) == ("queued", 0, "")
    reached = max(one["step"] for one in place.seen if one["what"] in DONE)
    assert row.checkpoint is not None
    assert row.checkpoint["step"] == reached, "not a step is lost"

    place.start("two")  # another machine: it has the checkpoint from the bucket
    ended(db, training_id, place)
    begun = [one for one in place.seen if one["what"] == "begin"]
    assert [one["step"] for one in begun] == [0, reached]


def test_a_cancelled_training_ends_its_trainer_and_frees_the_card(place: Workplace, db: Database, few_faces: Path) -> None:
    place.start("one")
    training_id = ask(db, few_faces, 5000)
    until(lambda: any(one["what"] == "step" for one in place.seen), "the first step", place, db, training_id)
    trainer = next(one["pid"] for one in place.seen if one["what"] == "begin")

    assert trainings.cancel(db, training_id, actor="user:ann")

    wait_until(lambda: not alive(trainer), "the end of the trainer", seconds=15)
    wait_until(lambda: machine_of(db, missing=True) == "", "the card's release", seconds=15)
    row = classroom.one(db, training_id)
    assert row is not None
    assert (row.status, row.reason) == ("cancelled", "Cancelled by user:ann.")
    assert told_events(db, training_id) == []


def machine_of(db: Database, *, missing: bool = False) -> str:
    """The machine whose card is held."""
    with db.read() as session:
        held = [lease for lease in session.scalars(select(CardLeaseRow)) if lease.lease_until is not None]
    assert held or missing
    # that of a machine that was killed stands as it was, and ends by itself
    return max(held, key=lambda lease: lease.changed_at).card.partition("/")[0] if held else ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
