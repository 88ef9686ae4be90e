"""A process that dies with a job: the ledger told by a witness, and decoding confined so that only its own process dies."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from billiard.pool import Pool, soft_timeout_sighandler
from celery.concurrency.prefork import TaskPool
from celery.exceptions import Ignore
from PIL import Image
from sqlalchemy.exc import OperationalError

from pipeline import deaths, images, inquiry, ledger
from pipeline.database import Database
from pipeline.jobs import Pixels, Queue, Stage, Status
from pipeline.settings import Settings
from tests.fixtures.files import saved
from tests.fixtures.jobs import MAX_ATTEMPTS, accepted, advance, claimed, event_types, upload
from workers import app as application
from workers import bereavement, confines, stages
from workers.bereavement import LOOK_S, Bereaved, Watchful, _why
from workers.confines import confined

DIED = {"why": "ended while it worked on it (SIGSEGV)", "max_attempts": MAX_ATTEMPTS}


def test_the_job_of_a_dead_process_is_queued_at_once_and_may_be_had(db: Database) -> None:
    claimed(db, job_id := accepted(db), worker="host:7")

    assert deaths.died(db, job_id, worker="host:7", **DIED) == (Stage.EXTRACT, Queue.INTERACTIVE)
    assert claimed(db, job_id).attempt == 2
    [swept] = [row for row in inquiry.history(db, job_id) if row.what == "swept"]
    assert swept.detail == "The process of the extract stage ended while it worked on it (SIGSEGV)."


def test_a_job_that_kills_every_process_fails_with_the_reason(db: Database) -> None:
    job_id = accepted(db)
    for _ in range(MAX_ATTEMPTS):
        claimed(db, job_id, worker="host:7")
        place = deaths.died(db, job_id, worker="host:7", **DIED)

    row = inquiry.job(db, job_id)
    assert place is None
    assert row is not None
    assert (row.status, row.attempts) == (Status.FAILED.value, MAX_ATTEMPTS)
    assert row.reason == "The extract stage was tried 3 times. The process of the extract stage ended while it worked on it (SIGSEGV)."
    assert event_types(db, job_id) == ["job.started", "job.failed"]


def test_a_dead_process_takes_no_job_that_another_has(db: Database) -> None:
    claim = claimed(db, job_id := accepted(db), worker="host:8")

    assert deaths.died(db, job_id, worker="host:7", **DIED) is None
    assert ledger.renew(db, claim, 5.0)


def test_a_process_that_died_between_its_stage_and_the_next_message_has_the_job_woken(db: Database) -> None:
    claim = claimed(db, job_id := accepted(db), worker="host:7")
    assert advance(db, claim)

    assert deaths.died(db, job_id, worker="host:7", **DIED) == (Stage.CLASSIFY, Queue.BULK)


def test_how_it_died_is_said_in_words() -> None:
    assert _why(Exception("Worker exited prematurely: signal 11 (SIGSEGV) Job: 3.")) == "ended while it worked on it (SIGSEGV)"
    assert _why(Exception("Worker exited prematurely: exitcode 1 Job: 3.")) == "ended while it worked on it (exitcode 1)"
    assert "in the time it is given" in _why(Exception("Worker exited prematurely: signal 14 (SIGALRM) Job: 0."))


class Message:
    """A wake-up as a worker holds it: Celery's request of it, and whether it was acknowledged or given back."""

    delivery_info: dict[str, Any] = {}
    properties: dict[str, Any] = {}

    def __init__(self, job_id: str, pid: int) -> None:
        self.headers = {"id": "m-1", "task": "unmask.extract", "retries": 0}
        self.body = self.payload = ([job_id], {}, {})
        self.ends: list[str] = []
        ends = {"on_ack": lambda *_: self.ends.append("done with"), "on_reject": lambda *_: self.ends.append("given back")}
        self.request = Bereaved(self, app=application.app, task=stages.extract, decoded=True, **ends)
        self.request.worker_pid = pid

    def lost(self, exitcode: int) -> None:
        """What the worker's pool does when the child that had it is gone."""
        job = SimpleNamespace(_job=3, _set=lambda number, result: self.request.on_failure(result[1]))
        Pool.mark_as_worker_lost(None, job, exitcode)


@pytest.fixture
def woken(db_url: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The messages that were sent when a process died; one that Celery repeats as well."""
    sent: list[tuple[object, ...]] = []
    monkeypatch.setattr(bereavement, "settings", lambda: Settings(database_url=db_url, max_attempts=2, lease_s=600))
    monkeypatch.setattr(bereavement, "wake", lambda *what: sent.append(what))
    monkeypatch.setattr(bereavement, "deliver_soon", lambda: sent.append(("webhooks",)))
    monkeypatch.setattr(Bereaved, "_retry_worker_lost", lambda request, error, info: sent.append(("repeated", type(error))) or True)
    return sent


def test_a_worker_knows_the_death_of_its_child_and_sends_the_job_on_at_once(db: Database, woken: list[tuple[object, ...]]) -> None:
    """By the very object that its pool makes of it: the error is wrapped in another."""
    here = socket.gethostname()
    job_id = accepted(db)
    for attempt, sent in ((1, (job_id, Stage.EXTRACT)), (2, ("webhooks",))):
        assert claimed(db, job_id, worker=f"{here}:{4_000_000 + attempt}", lease_s=600.0).attempt == attempt
        (message := Message(job_id, 4_000_000 + attempt)).lost(-signal.SIGKILL)

        assert message.ends == ["done with"], "nobody else gets it a second time"
        assert woken.pop()[:2] == sent
        assert not woken
    row = inquiry.job(db, job_id)
    assert row is not None
    assert row.status == Status.FAILED.value
    assert str(row.reason).endswith("The process of the extract stage ended while it worked on it (SIGKILL).")


def test_a_death_that_cannot_be_written_down_leaves_the_message_to_celery(
    db: Database, woken: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(db, job_id := accepted(db), worker=f"{socket.gethostname()}:7")

    def away(*_: object, **__: object) -> None:
        raise OperationalError("", {}, Exception("away"))

    monkeypatch.setattr(deaths, "died", away)
    Message(job_id, 7).lost(-signal.SIGSEGV)

    assert woken == [("repeated", WorkerLostError)]


def test_an_error_is_no_death(db: Database, woken: list[tuple[object, ...]]) -> None:
    claim = claimed(db, job_id := accepted(db), worker=f"{socket.gethostname()}:7")
    message = Message(job_id, 7)
    try:
        raise Ignore
    except Ignore:
        message.request.on_failure(ExceptionInfo())

    assert message.ends == ["done with"]
    assert not woken
    assert ledger.renew(db, claim, 5.0)


def _in_a_child(child: Callable[..., None], *given: Any, start: str = "fork") -> tuple[int | None, list[Any]]:
    """Run it in a process of its own, forked from this one or spawned: how that ended, and what it sent."""
    context: Any = multiprocessing.get_context(start)
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(theirs, *given))
    process.start()
    theirs.close()
    process.join(60)
    words = []
    while mine.poll():
        try:
            words.append(mine.recv())
        except EOFError:
            break
    mine.close()
    return process.exitcode, words


def _forked(work: str, seconds: float) -> tuple[int | None, list[str]]:
    """Do something confined in a child, as in a pool's; its exit code and what it said."""

    def child(said: Connection) -> None:
        try:
            with confined(seconds, 200_000_000):
                if work == "hang":
                    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
                    time.sleep(60)
                elif work == "spin":
                    signal.setitimer(signal.ITIMER_REAL, 0)  # however busy the machine
                    sum(range(10**12))
                elif work == "memory":
                    hoard = [bytearray(50_000_000) for _ in range(20)]
                    said.send(str(len(hoard)))
                else:
                    bytearray(100_000_000)
            time.sleep(2 * seconds if work == "outlive" else 0)
            bytearray(400_000_000)
            said.send("free again")
        except MemoryError:
            said.send("memory")
        os._exit(0)

    return _in_a_child(child)


@pytest.mark.parametrize(
    ("work", "seconds", "expected"),
    [
        ("fit", 20.0, (0, ["free again"])),
        ("memory", 20.0, (0, ["memory"])),
        ("hang", 0.3, (-signal.SIGALRM, [])),
        ("spin", 0.3, (-signal.SIGPROF, [])),
        ("outlive", 1.0, (0, ["free again"])),
    ],
)
def test_what_is_confined_costs_its_own_process_only(work: str, seconds: float, expected: tuple[int, list[str]]) -> None:
    assert _forked(work, seconds) == expected


def _decode_under(said: Connection, limit: int, data: bytes) -> None:
    confines._HOME = os.getppid()  # as in a child of a pool's, which is forked from who has imported it
    chosen = Settings(decode_limit_bytes=limit)
    claim = ledger.Claim("job", Stage.EXTRACT, 1, 1, upload(), Queue.BULK, "host:7", 0.0)
    try:
        stages._decoded(chosen, claim, data)
    except Exception as error:
        said.send(stages._verdict_on(error, Stage.EXTRACT, chosen))


def test_a_picture_that_did_not_fit_into_memory_is_tried_again() -> None:
    """By the limit that a worker decodes under; the decoder itself says that the file is damaged."""
    stream = io.BytesIO()
    Image.new("RGB", (4000, 3000), "green").save(stream, "WEBP", method=0)
    # spawned: in a fork, what earlier tests have left free in this process would be room, too
    decoded = _in_a_child(_decode_under, 1_000_000, stream.getvalue(), start="spawn")
    assert decoded == (0, [(False, "There was not enough memory for the extract stage.")])


def _decode_when_time_is_up(said: Connection) -> None:
    """As in a child of a pool's, beside the thread of a lease; the soft limit comes in the middle of decoding."""
    confines._HOME = os.getppid()
    signal.signal(signal.SIGUSR1, soft_timeout_sighandler)
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    chosen = Settings()
    claim = ledger.Claim("job", Stage.EXTRACT, 1, 1, upload(), Queue.BULK, "host:7", 0.0)
    normalised = images._normalised

    def interrupted(image: Image.Image) -> Pixels:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.1)
        return normalised(image)

    for way in (interrupted, normalised):
        images._normalised = way
        try:
            said.send(stages._decoded(chosen, claim, saved(Image.new("RGB", (8, 6)), "PNG")).width)
        except Exception as error:
            said.send(stages._verdict_on(error, Stage.EXTRACT, chosen))
    said.send(signal.getsignal(signal.SIGUSR1) is soft_timeout_sighandler)


def test_a_sound_picture_is_not_refused_because_the_stage_ran_out_of_time() -> None:
    """The exception of the soft limit is one of many that a decoder may raise; what is decoded next is not affected."""
    # spawned: a fork of a process whose decoders have threads already may crash in them
    assert _in_a_child(_decode_when_time_is_up, start="spawn") == (0, [(False, "The extract stage took longer than 60 s."), 8, True])


def test_the_worker_itself_is_not_confined() -> None:
    with confined(0.01, 1):
        time.sleep(0.05)
        assert len(bytearray(10_000_000)) == 10_000_000


def test_a_pool_of_the_stages_looks_after_its_children_all_the_time() -> None:
    """Celery's own looks every five seconds, and at a moment that is often too early; `make faults` measures what comes of it."""
    assert stages.extract.Request is Bereaved
    assert issubclass(TaskPool.Pool, Watchful)
    looks = SimpleNamespace(maintain_pool=lambda: None)
    assert Watchful.timers.fget is not None
    assert Watchful.timers.fget(looks) == {looks.maintain_pool: LOOK_S}
    assert LOOK_S <= 0.5
