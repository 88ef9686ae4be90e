"""The train worker with trainers that fail: what is missing is said, what is busy waits, what hangs is ended. No TensorFlow here."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from pipeline import cards, classroom, collections, gate, trainings
from pipeline.database import Database
from pipeline.jobs import Status
from pipeline.settings import Settings
from pipeline.storage import storage
from pipeline.tables.learning import ItemRow
from pipeline.tables.training import CardLeaseRow, TrainingRow
from pipeline.training import checkpoint
from tests.fixtures.gaudi import BIN, machine
from tests.fixtures.trainings import asked, claimed, expire, row_of, told_events
from webhooks.dashboard.trainings import said
from workers import material, train, upkeep
from workers.course import NICE, Course
from workers.holding import Hold, HoldLost

Trainer = Callable[..., Settings]


@pytest.fixture
def db(sqlite_url: str) -> Iterator[Database]:
    made = Database(sqlite_url)
    yield made
    made.dispose()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "deliver_soon", lambda: True)


@pytest.fixture
def faces(tmp_path: Path) -> str:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces/faces.csv").write_text("path,identity,split\n")
    return str(tmp_path / "faces")


@pytest.fixture
def trainer(s3_settings: Settings, sqlite_url: str, tmp_path: Path) -> Trainer:
    """Settings whose trainer is a shell script."""

    def make(script: str, **changed: Any) -> Settings:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        return s3_settings.model_copy(update={"database_url": sqlite_url, "train_python": str(path), "lease_s": 3.0, **changed})

    return make


def test_a_device_that_is_not_there_fails_loudly_and_says_what_is_missing(db: Database, trainer: Trainer, tmp_path: Path) -> None:
    training_id = asked(db, device="hpu")
    (tmp_path / "root").mkdir()

    assert train.run(db, trainer("exit 0", train_device="hpu", device_root=tmp_path / "root"), training_id) is Status.FAILED

    assert "There is no Gaudi card here" in (row_of(db, training_id).reason or "")
    assert [event.type for event in told_events(db, training_id)] == ["training.failed"]


def test_another_device_is_never_taken_instead(db: Database, trainer: Trainer, faces: str) -> None:
    training_id = asked(db, device="hpu", dataset=faces)
    assert train.run(db, trainer("exit 0"), training_id) is Status.FAILED
    assert "asks for hpu, and this worker has cpu" in (row_of(db, training_id).reason or "")


def test_without_tensorflow_it_says_how_to_bring_it(db: Database, trainer: Trainer, faces: str) -> None:
    training_id = asked(db, dataset=faces)
    settings = trainer("exit 0").model_copy(update={"train_python": "/no/such/python"})
    assert train.run(db, settings, training_id) is Status.FAILED
    assert "make train-environment" in (row_of(db, training_id).reason or "")
    assert any("train-environment" in problem for problem in train.problems(settings))


def test_a_busy_card_is_waited_for(db: Database, trainer: Trainer, faces: str) -> None:
    training_id, settings = asked(db, dataset=faces), trainer("exit 0")
    lease = cards.acquire(db, cards.group("cpu", "0"), holder="other", training="t", lease_s=60, locks=settings.cards_dir)

    assert train.run(db, settings, training_id) is None

    row = row_of(db, training_id)
    assert (row.status, row.attempts, row.runs) == ("queued", 0, 0)
    assert "in use" in (row.reason or "")
    assert row.next_attempt_at is not None
    cards.release(db, lease)


@pytest.mark.parametrize(
    ("script", "state", "said"),
    [
        ("echo 'There are no photographs.' >&2; exit 2", Status.FAILED, "There are no photographs."),
        ("echo 'Out of luck.' >&2; exit 1", Status.QUEUED, "Out of luck."),
        ("kill -SEGV $$", Status.QUEUED, "The trainer crashed in native code."),
        ("kill -ABRT $$", Status.QUEUED, "aborted"),
        ("echo 'Device acquire failed' >&2; exit 1", Status.QUEUED, "Device acquire failed"),
    ],
)
def test_how_a_trainer_ends_is_said_in_one_sentence(
    script: str, state: Status, said: str, db: Database, trainer: Trainer, faces: str
) -> None:
    training_id = asked(db, dataset=faces)
    assert train.run(db, trainer(script), training_id) is state
    row = row_of(db, training_id)
    assert said in (row.reason or "")
    assert row.status == state.value


def test_faceforensics_is_learnt_from_at_the_compression_that_was_asked_for(
    db: Database, trainer: Trainer, faces: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a hold-out, and FaceForensics++ at c40 alone
    item = {"suffix": ".jpg", "fake": False, "manipulation": "", "group": {}, "added_at": 1.0}
    with db.write() as session:
        session.add(ItemRow(collection="default", sha256="0" * 64, identity="ann", split="test", **item))
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.json").write_text('[["000", "001"]]' if split == "train" else "[]")
    (tmp_path / "original_sequences/youtube/c40/images/000").mkdir(parents=True)
    growing = collections.OnDisk("d" * 64, Path(faces), None)
    monkeypatch.setattr(collections, "default", lambda *_, **__: growing)
    # When it is learnt from, then the trainer is told so
    settings = trainer('echo "$*" >&2; exit 2')
    for params, sentence in (({"compression": "c40"}, "--compression=c40"), ({}, "at compression c23")):
        training_id = asked(db, dataset=str(tmp_path), params=params)
        assert train.run(db, settings, training_id) is Status.FAILED
        assert sentence in (row_of(db, training_id).reason or "")


def test_what_an_earlier_attempt_said_is_not_held_against_the_next(db: Database, trainer: Trainer, faces: str) -> None:
    training_id = asked(db, dataset=faces)
    assert train.run(db, trainer("echo 'ResourceExhaustedError' >&2; kill -KILL $$", train_retry_s=0.0), training_id) is Status.FAILED
    assert trainings.requeue(db, training_id, actor="cli")
    assert train.run(db, trainer("kill -KILL $$", train_retry_s=0.0), training_id) is Status.QUEUED


def test_a_trainer_that_says_nothing_is_ended_and_its_card_is_free(db: Database, trainer: Trainer, faces: str, tmp_path: Path) -> None:
    training_id = asked(db, dataset=faces)
    settings = trainer(f"echo $$ > {tmp_path}/pid; exec sleep 600", train_stall_s=1.0)

    began = time.monotonic()
    assert train.run(db, settings, training_id) is Status.QUEUED

    assert time.monotonic() - began < 60
    assert row_of(db, training_id).reason == "The trainer said nothing for 1 s."
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    cards.release(db, cards.acquire(db, cards.group("cpu", "0"), holder="me", training="t", lease_s=5, locks=settings.cards_dir))


def test_a_trainer_that_says_what_it_prepares_is_alive(db: Database, trainer: Trainer, faces: str) -> None:
    said_so = """echo '{"event": "preparing", "what": "hashes", "done": 5}' >> progress.jsonl; sleep .5"""
    step = """echo '{"event": "step", "stage": 0, "step": 3, "steps": 4, "seconds": 1}' >> progress.jsonl"""
    script = f"{step}; for k in 1 2 3 4 5 6 7 8 9 10 11 12; do {said_so}; done; echo Prepared. >&2; exit 2"
    training_id = asked(db, dataset=faces)

    assert train.run(db, trainer(script, train_stall_s=5.0), training_id) is Status.FAILED

    row = row_of(db, training_id)
    assert row.reason == "Prepared."
    assert (said(row)["share"], row.progress["event"]) == (0.75, "step"), "the page goes on to show what there was"
    assert [point["event"] for point in classroom.curve(db, training_id)] == ["step"]


def test_a_worker_that_is_ending_begins_nothing(db: Database, trainer: Trainer, faces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "ending", lambda: True)
    training_id = asked(db, dataset=faces)
    assert train.run(db, trainer("exit 0"), training_id) is None
    assert row_of(db, training_id).runs == 0


def test_folders_of_trainings_that_are_over_are_cleared_away(db: Database, trainer: Trainer, faces: str) -> None:
    settings, waiting = trainer("exit 0"), asked(db, dataset=faces)
    resumable, forsaken = asked(db, dataset=faces), asked(db, dataset=faces)
    for name in (resumable, forsaken):
        assert claimed(db, name)
        assert trainings.cancel(db, name, actor="cli")
    with db.write() as session:
        session.execute(update(TrainingRow).where(TrainingRow.id == forsaken).values(finished_at=1.0))
    assert trainings.forsaken(db, after_s=60.0) == [(forsaken, 2)]
    assert trainings.forgotten(db, forsaken, 2)
    for name in (waiting, resumable, forsaken, "trn_unknown", "other"):
        (settings.trainings_dir / name).mkdir(parents=True)
    assert set(train.clear_away(db, settings)) == {"trn_unknown", forsaken}
    assert {path.name for path in settings.trainings_dir.iterdir()} == {waiting, resumable, "other"}


def test_it_is_one_of_the_workers_and_never_loads_tensorflow() -> None:
    code = "import sys, workers.train; print(sorted({name.partition('.')[0] for name in sys.modules} & {'tensorflow', 'keras'}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert "unmask.train" in train.app.tasks
    assert "unmask.train_upkeep" in upkeep.app.tasks


def test_what_a_dead_worker_had_no_time_to_store_is_stored_before_there_is_more(db: Database, trainer: Trainer, faces: str) -> None:
    training_id, settings = asked(db, dataset=faces), trainer("cat stored.json > found; exit 1")
    folder = settings.trainings_dir / training_id
    folder.mkdir(parents=True)
    checkpoint.save(folder, checkpoint.Progress("of this training", step=7), {})
    (folder / "progress.jsonl").write_text('{"event": "look", "stage": 0, "step": 7, "loss": 0.5}\n{"event": "st')

    assert train.run(db, settings, training_id) is Status.QUEUED

    assert json.loads((folder / "found").read_text()) == {"stage": 0, "step": 7}, "the trainer was started too soon"
    kept = row_of(db, training_id).checkpoint
    assert kept is not None
    assert (kept["stage"], kept["step"], list(kept["files"])) == (0, 7, ["checkpoint.npz"])
    assert [point["step"] for point in classroom.curve(db, training_id)] == [7]


def test_a_trainer_on_the_cpu_lets_everything_else_go_first(db: Database, trainer: Trainer, faces: str) -> None:
    group = Path("/proc/self/autogroup")
    training_id, settings = asked(db, dataset=faces), trainer("nice > found; cat /proc/self/autogroup >> found; exit 1")

    assert train.run(db, settings, training_id) is Status.QUEUED

    own, *session = (settings.trainings_dir / training_id / "found").read_text().splitlines()
    assert int(own) == os.nice(0) + NICE
    if group.exists() and group.read_text().strip():
        assert session[0].endswith(f" nice {own}"), "niceness alone counts among the processes of one session only"


WITNESS = f"""
case "$*" in *pipeline.training.release*) echo 'No version today.' >&2; exit 2;; esac
ls -l /proc/$$/fd >> open
case "$*" in *workers.ranks*) exec {sys.executable} "$@";; esac
env -0 > rank.$$
echo "$@" > arguments.$$
for name in weights.h5 training.json curve.json curve.png; do echo x > $name; done"""
"""A trainer that writes down what it was given; the program that starts several ranks is the real one."""
PINNING = ("HLS_MODULE_ID", "HABANA_VISIBLE_MODULES", "OMPI_MCA_btl_vader_single_copy_mechanism", "CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("device", "modules", "pinning"),
    [
        ("hpu", "2", ("2", None, None, None)),
        ("hpu", "2,3", (None, "2,3", "none", None)),
        ("cpu", "0,1", (None, None, None, "")),
    ],
)
def test_every_rank_is_pinned_to_the_cards_that_the_worker_holds(
    device: str,
    modules: str,
    pinning: tuple[str | None, ...],
    db: Database,
    trainer: Trainer,
    faces: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    for left in PINNING:
        monkeypatch.setenv(left, "7")  # by an earlier launch
    root, numbers = machine(tmp_path / "node"), modules.split(",")
    training_id = asked(db, device=device, dataset=faces)
    settings = trainer(WITNESS, train_device=device, train_cards=modules, device_root=root, lease_s=30.0)

    assert train.run(db, settings, training_id) is Status.FAILED

    assert row_of(db, training_id).reason == "No version could be made of the weights: No version today."
    folder = settings.trainings_dir / training_id
    ranks = [dict(pair.split("=", 1) for pair in path.read_text().split("\0") if pair) for path in folder.glob("rank.*")]
    assert [tuple(rank.get(name) for name in PINNING) for rank in ranks] == [pinning] * len(numbers)
    if len(numbers) > 1:
        told = [json.loads(rank["TF_CONFIG"])["task"]["index"] if device == "cpu" else int(rank["OMPI_COMM_WORLD_RANK"]) for rank in ranks]
        assert sorted(told) == [0, 1]
    for path in folder.glob("arguments.*"):
        assert f"--device {device} --ranks {len(numbers)} --device-root {root} " in path.read_text()
    held = (folder / "open").read_text()
    assert all(f"/{device}{number}.lock" in held for number in numbers), "the trainer does not keep its cards locked"
    with db.read() as session:
        leases = {row.card: (row.fence, row.holder, row.lease_until) for row in session.scalars(select(CardLeaseRow))}
    assert leases == {f"{platform.node()}/{device}/{number}": (1, "", None) for number in numbers}


def test_one_training_keeps_to_one_state_of_the_growing_data_set(
    db: Database, trainer: Trainer, faces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that are accepted meanwhile are for the next one: the version would otherwise name data it never saw."""
    settings, training_id = trainer("exit 1"), asked(db, dataset="")
    claim, wanted = claimed(db, training_id), list[str]()

    def bring(*_: object, sha256: str, **__: object) -> material.Material:
        wanted.append(sha256)
        return material.Material(Path(faces), None, sha256 or f"state {len(wanted)}")

    monkeypatch.setattr(material, "bring", bring)
    hold, lease = cast(Any, SimpleNamespace(check=lambda: None)), cast(Any, None)
    course = Course(db, storage(settings), settings, claim, hold, lease, sys.executable)

    assert [course._material().sha256 for _ in range(2)] == ["state 1", "state 1"]
    assert wanted == ["", "state 1"]
    assert row_of(db, training_id).settled == {"dataset_sha256": "state 1"}


@pytest.mark.parametrize("loss", ["swept", "failed", "cancelled", ""])
def test_who_lost_the_training_while_it_was_measured_promotes_nothing(
    loss: str, db: Database, trainer: Trainer, faces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, training_id = trainer("exit 1"), asked(db, dataset=faces)
    claim, decided = claimed(db, training_id), []

    def consider(*_: object, provided: Callable[[Session], None], **__: object) -> None:
        if loss == "swept":
            expire(db, training_id)
            trainings.sweep(db, max_attempts=3)
            claimed(db, training_id, worker="another")
        elif loss == "failed":
            assert trainings.retry(db, claim, "It broke.", permanent=True, max_attempts=3, first_wait_s=1.0) is Status.FAILED
        elif loss == "cancelled":
            assert trainings.cancel(db, training_id, actor="cli")
        with db.write() as session:
            provided(session)
            decided.append(training_id)
        raise Decided

    monkeypatch.setattr(gate, "consider", consider)
    hold = Hold(db, claim, None, 60.0)
    course = Course(db, storage(settings), settings, claim, hold, cast(Any, None), sys.executable)

    with pytest.raises(HoldLost if loss else Decided):
        course._decide()

    assert decided == ([] if loss else [training_id])
    assert hold.lost.is_set() == bool(loss)


class Decided(Exception):
    """The decision was recorded."""
