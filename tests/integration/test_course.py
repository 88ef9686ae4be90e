"""The loop that looks after a trainer, and after what makes a version: it hears, and asks to stop, while it stores. No TensorFlow here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.database import Database
from pipeline.jobs import Status
from pipeline.settings import Settings
from pipeline.storage import Storage, storage
from pipeline.training import checkpoint
from tests.fixtures.trainings import asked, row_of
from workers import course, train

Trainer = Callable[..., Settings]
CHECKPOINTS = "cp {made} new; mv new checkpoint.npz"
RESULTS = "for name in weights.h5 training.json curve.json curve.png; do echo x > $name; done"


@pytest.fixture
def db(sqlite_url: str) -> Iterator[Database]:
    made = Database(sqlite_url)
    yield made
    made.dispose()


@pytest.fixture
def training_id(db: Database, tmp_path: Path) -> str:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces/faces.csv").write_text("path,identity,split\n")
    return asked(db, dataset=str(tmp_path / "faces"))


@pytest.fixture
def trainer(s3_settings: Settings, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Settings whose trainer is a shell script; what makes a version is another."""
    monkeypatch.setattr(train, "deliver_soon", lambda: True)

    def make(script: str, release: str = "exit 2", **changed: Any) -> Settings:
        (tmp_path / "made").mkdir()
        checkpoint.save(tmp_path / "made", checkpoint.Progress("of this training", step=7), {})
        path = tmp_path / "python"
        script = script.replace(CHECKPOINTS, CHECKPOINTS.format(made=tmp_path / "made/checkpoint.npz"))
        path.write_text(f'#!/bin/sh\ncase "$*" in *pipeline.training.release*) {release};; esac\n{script}\n')
        path.chmod(0o700)
        return s3_settings.model_copy(update={"database_url": sqlite_url, "train_python": str(path), "lease_s": 30.0, **changed})

    return make


def slowly(monkeypatch: pytest.MonkeyPatch, settings: Settings, go_on: Callable[[], bool], *, mute: bool = False) -> None:
    """Let each upload take as long as `go_on` is true, telling what it has sent (unless `mute`) from another thread, as boto3 does."""
    client = storage(settings).client
    upload = client.upload_file

    def slow(*where: str, Callback: Callable[[int], None] | None = None) -> None:
        def send() -> None:
            while go_on():
                time.sleep(0.05)
                if Callback is not None and not mute:
                    Callback(1)

        sender = threading.Thread(target=send)
        sender.start()
        sender.join()
        upload(*where, Callback=None if mute else Callback)

    monkeypatch.setattr(client, "upload_file", slow)


def test_a_worker_that_is_to_end_while_it_stores_tells_the_trainer_at_once(
    db: Database, trainer: Trainer, training_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an upload that lasts until the trainer has been asked to stop, which it may be once only
    settings = trainer(f"trap 'echo >> asked; sleep .5; exit 75' TERM; {CHECKPOINTS}; while :; do sleep .05; done", train_stop_s=1.0)
    heard = settings.trainings_dir / training_id / "asked"
    ending, until = threading.Event(), time.monotonic() + 30

    def go_on() -> bool:
        ending.set()
        return not heard.exists() and time.monotonic() < until

    slowly(monkeypatch, settings, go_on)
    monkeypatch.setattr(train, "ending", ending.is_set)
    # When the worker is asked to end at its beginning
    assert train.run(db, settings, training_id) is Status.QUEUED
    # Then the trainer heard of it meanwhile, and no attempt is counted
    assert time.monotonic() < until, "the trainer heard of it after the upload"
    row = row_of(db, training_id)
    assert (heard.read_text(), row.attempts, row.reason) == ("\n", 0, None)
    assert row.checkpoint is not None
    assert row.checkpoint["step"] == 7


def test_a_trainer_that_ended_in_time_is_not_late_because_storing_took_longer(
    db: Database, trainer: Trainer, training_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = CHECKPOINTS.replace("{made}", "checkpoint.npz")
    settings = trainer(f"trap '{again}; exit 75' TERM; {CHECKPOINTS}; while :; do sleep .05; done", train_stop_s=1.0)
    ending, began, stored = threading.Event(), list[float](), list[object]()

    def go_on() -> bool:
        ending.set()
        began.append(time.monotonic())
        return time.monotonic() - began[0] < 2.5

    slowly(monkeypatch, settings, go_on)
    monkeypatch.setattr(train, "ending", ending.is_set)
    store = course.Course._store

    def noted(*given: Any, **how: Any) -> None:
        stored.append(given[3])
        store(*given, **how)

    monkeypatch.setattr(course.Course, "_store", noted)

    assert train.run(db, settings, training_id) is Status.QUEUED

    assert stored == ["0-7", "0-7"], "its last checkpoint was not stored"


@pytest.mark.parametrize("mute", [False, True])
def test_an_upload_that_takes_long_is_not_held_against_the_trainer(
    mute: bool, db: Database, trainer: Trainer, training_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = trainer(f"{CHECKPOINTS}; until [ -e stored.json ]; do sleep .05; done; echo Stored. >&2; exit 2", train_stall_s=3.0)
    began = list[float]()

    def go_on() -> bool:
        began.append(time.monotonic())
        return time.monotonic() - began[0] < 4.0

    slowly(monkeypatch, settings, go_on, mute=mute)

    assert train.run(db, settings, training_id) is Status.FAILED

    assert row_of(db, training_id).reason == "Stored."


@pytest.mark.parametrize("end", ["kill -TERM $$", "kill -USR1 $$", "exit 75"])
def test_a_trainer_that_somebody_else_stops_has_had_its_attempt(end: str, db: Database, trainer: Trainer, training_id: str) -> None:
    settings = trainer(f"echo Bye.; {end}", train_max_attempts=2, train_retry_s=0.0)

    assert [train.run(db, settings, training_id) for _ in range(2)] == [Status.QUEUED, Status.FAILED]

    row = row_of(db, training_id)
    assert (row.reason, row.error, row.attempts) == ("The trainer was asked to stop by somebody else.", "Bye.", 2)


@pytest.mark.parametrize("phase", ["train", "release"])
def test_an_end_that_reaches_the_trainer_before_its_worker_costs_no_attempt(
    phase: str, db: Database, trainer: Trainer, training_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = "echo > ended; kill -TERM $$"
    settings = trainer(end) if phase == "train" else trainer(RESULTS, end)
    ended = settings.trainings_dir / training_id / "ended"
    monkeypatch.setattr(train, "ending", lambda: ended.exists() and time.time() - ended.stat().st_mtime > 0.7)

    assert train.run(db, settings, training_id) is Status.QUEUED

    row = row_of(db, training_id)
    assert (row.attempts, row.phase, row.reason) == (0, phase, None)


@pytest.mark.parametrize(
    ("release", "stalls", "reason"),
    [
        ("for k in 1 2 3 4 5 6 7 8; do echo $k; sleep .5; done; echo Spoken.; exit 2", 1, "Spoken."),
        ("sleep 4; echo Awake.; exit 2", 6, "Awake."),
        ("exec sleep 600", 1, "What makes it said nothing for 2 s."),
    ],
)
def test_what_makes_a_version_may_be_silent_for_longer_than_a_trainer_and_is_heard_by_its_log(
    release: str, stalls: int, reason: str, db: Database, trainer: Trainer, training_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "RELEASE_STALLS", stalls)

    train.run(db, trainer(RESULTS, release, train_stall_s=2.0), training_id)

    assert row_of(db, training_id).reason == f"No version could be made of the weights: {reason}"


def test_an_upload_tells_how_it_gets_on(store: Storage, s3_settings: Settings, tmp_path: Path) -> None:
    size, told = 20_000_000, list[tuple[int, int]]()
    (tmp_path / "large").write_bytes(bytes(size))

    store.upload(s3_settings.models_bucket, "large", tmp_path / "large", lambda sent: told.append((sent, threading.get_ident())))

    assert sum(sent for sent, _ in told) == size
    assert len(told) > 10
    assert threading.get_ident() not in {thread for _, thread in told}
