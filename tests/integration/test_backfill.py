"""Back-fills: every old object gets one job, after kills and beside fresh uploads, whatever the size of the bucket.

The long forms take 100,000 keys: of a listing that is made up page by page, where what is measured is the product and not
the store, and of a bucket of the real one.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Event, Thread

import pytest
from celery import Celery
from kombu import Queue as Channel
from redis import Redis
from sqlalchemy import func, select, update

from pipeline import backfills, faults, inboxkeeping, ledger
from pipeline.backfills import BackfillError, Progress
from pipeline.database import Database, JobRow
from pipeline.inboxes import Inbox
from pipeline.jobs import Queue, Stage, Status, Upload
from pipeline.settings import Settings, to_environment
from pipeline.storage import Storage
from tests.fixtures.old_objects import Made
from tests.fixtures.stores import Stores
from workers import backfilling, upkeep
from workers.queues import queues


def run(db: Database, store: Storage, **options: object) -> Progress:
    return backfilling.run(db, store, Settings(), "default", send=lambda *_, **__: True, **{"window": 10**9, **options})  # type: ignore[arg-type]


def counted(db: Database) -> dict[str, int]:
    with db.read() as session:
        return dict(session.execute(select(JobRow.queue, func.count()).group_by(JobRow.queue)).all())


def test_every_object_without_a_job_gets_one_and_no_other(db: Database) -> None:
    known = next(Made(1).listing("inbox"))
    before = ledger.accept(db, Upload("inbox", known.key, etag=known.etag, origin="sqs", sequencer="01"))
    replaced = ledger.accept(db, Upload("inbox", "00000002/ü +%.jpg", etag="another", sequencer="01"))

    done = run(db, Made(1000))

    assert (done.seen, done.made, done.left_alone) == (1000, 899, 100)
    assert done.finished_at is not None
    assert counted(db) == {"bulk": 2, "backfill": 899}
    with db.read() as session:
        rows = session.scalars(select(JobRow)).all()
        histories = session.execute(select(func.count()).select_from(JobRow.__table__.join(_history()))).scalar_one()
    keys = Counter(row.key for row in rows)
    assert keys.pop("00000002/ü +%.jpg") == 2, "it was overwritten since it was judged"
    assert set(keys.values()) == {1}
    assert histories == len(rows)
    assert {row.inbox for row in rows} == {"default"}
    assert before.job_id != replaced.job_id


def _history() -> object:
    from pipeline.database import HistoryRow

    return HistoryRow.__table__


def test_a_second_run_starts_anew_and_makes_nothing_twice(db: Database) -> None:
    assert run(db, Made(500)).made == 450
    again = run(db, Made(620))
    assert (again.seen, again.made, again.left_alone) == (620, 108, 62)
    assert counted(db) == {"backfill": 558}


def test_it_stops_between_two_steps_and_goes_on_there(db: Database) -> None:
    stopping = Event()

    def told(progress: Progress, _: int) -> None:
        if progress.seen >= 400:
            stopping.set()

    first = run(db, Made(1000), stopping=stopping, told=told)
    store = Made(1000)

    assert (first.seen, first.finished_at) == (400, None)
    done = run(db, store)
    assert store.listed == [first.after]
    assert (done.seen, done.made) == (1000, 900)


def test_two_at_once_do_not_undo_each_other(db: Database) -> None:
    inbox = Inbox("default", "inbox")
    mine = backfills.begin(db, inbox)
    theirs = backfills.begin(db, inbox)
    backfills.take(db, mine, inbox, [Upload("inbox", "a.jpg", etag="e")], seen=1, up_to="a.jpg")
    with pytest.raises(BackfillError, match="under way"):
        backfills.take(db, theirs, inbox, [Upload("inbox", "a.jpg", etag="e")], seen=1, up_to="a.jpg")
    assert counted(db) == {"backfill": 1}


@pytest.mark.parametrize("finished", [False, True], ids=["the first ever", "one that was finished"])
def test_two_that_begin_at_the_same_moment_go_on_with_one(db: Database, monkeypatch: pytest.MonkeyPatch, finished: bool) -> None:
    inbox, both = Inbox("default", "inbox"), Barrier(2)
    before = backfills.finish(db, backfills.begin(db, inbox)) if finished else None

    def meet(name: str, subject: str = "") -> None:
        if name == "commit":
            with suppress(BrokenBarrierError):  # where the second waits for the first, nobody meets here
                both.wait(1.0)

    monkeypatch.setattr(faults, "point", meet)
    with ThreadPoolExecutor(2) as pool:
        mine, theirs = pool.map(lambda _: backfills.begin(db, inbox), range(2))

    assert mine == theirs
    assert (mine.after, mine.seen, mine.finished_at) == ("", 0, None)
    assert before is None or mine.started_at > before.started_at
    assert backfills.all_of_them(db) == [mine]


def test_an_event_that_tells_of_an_object_that_waits_puts_it_before_the_others(db: Database) -> None:
    run(db, Made(3))
    told = ledger.accept(db, Upload("inbox", "00000001/ü +%.jpg", etag=f"{1:032x}", sequencer="0A"))
    assert not told.created
    assert counted(db) == {"backfill": 2, "bulk": 1}


def test_only_so_many_wait_at_once(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfilling, "LOOK_S", 0.1)
    most: list[int] = []

    def work() -> None:
        while not done.is_set():
            with db.write() as session:
                waiting = session.scalars(select(JobRow.id).where(JobRow.status == Status.QUEUED.value).limit(300)).all()
                session.execute(update(JobRow).where(JobRow.id.in_(waiting)).values(status=Status.DONE.value))
            done.wait(0.02)

    done = Event()
    worker = Thread(target=work)
    worker.start()
    try:
        finished = backfilling.run(
            db, Made(1500), Settings(), "default", window=500, told=lambda _, waiting: most.append(waiting), send=lambda *_, **__: True
        )
    finally:
        done.set()
        worker.join()
    assert finished.made == 1350
    assert max(most) <= 500


def test_an_inbox_that_is_off_or_a_prefix_outside_of_it_is_refused(db: Database) -> None:
    inboxkeeping.add(db, Settings(), Inbox("press", "press-bucket", "in/"), by="test")
    with pytest.raises(BackfillError, match="begins with in/"):
        backfilling.run(db, Made(1), Settings(), "press", prefix="out/")
    inboxkeeping.change(db, Settings(), "press", enabled=False, by="test")
    with pytest.raises(BackfillError, match="turned off"):
        backfilling.run(db, Made(1), Settings(), "press")


PROGRAM = """
import json, re, sys, time
from pathlib import Path
from pipeline.database import Database
from pipeline.settings import Settings
from tests.fixtures.old_objects import Made
from tests.fixtures.stores import Stores
from workers import backfilling

def peak_kb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

url, count, die_at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def go(number):
    return backfilling.run(Database(url), Made(number, die_at=die_at), Settings(), "default", window=10**9, send=lambda *_, **__: True)
began, before = time.process_time(), peak_kb()
done = go(count)
print(json.dumps({"made": done.made, "seen": done.seen, "cpu_s": time.process_time() - began, "before_kb": before, "peak_kb": peak_kb()}))
"""


@pytest.mark.timeout(1800)
def test_a_large_bucket_is_taken_in_little_memory_and_survives_kills(
    db: Database, db_url: str, long: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 100_000 if long else 2_000

    def go(die_at: int = -1) -> tuple[int, dict[str, float]]:
        command = [sys.executable, "-c", PROGRAM, db_url, str(count), str(die_at)]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, check=False, timeout=1500)
        return done.returncode, json.loads(done.stdout or b"{}")

    for part in (count // 3, 2 * count // 3) if long else (2 * count // 3,):
        assert go(die_at=part)[0] == -signal.SIGKILL
    code, measured = go()

    assert code == 0
    assert measured["seen"] == count
    assert measured["made"] == count * 9 // 10
    assert counted(db) == {"backfill": count * 9 // 10}
    assert measured["peak_kb"] - measured["before_kb"] < 40_000, "it holds a page, not a bucket"
    with capsys.disabled():
        rate = count / 3 / measured["cpu_s"]
        print(
            f" [{db.engine.dialect.name}, {count:,} keys: {rate:,.0f} keys per CPU second, "
            f"{(measured['peak_kb'] - measured['before_kb']) / 1000:.1f} MB above {measured['before_kb'] / 1000:.0f} MB] ",
            end="",
        )


REAL = """
import json, os, re, signal, sys, time
from pathlib import Path
from pipeline.database import Database
from pipeline.settings import from_environment
from pipeline.storage import Storage
from workers import backfilling

url, die_at = sys.argv[1:]
began, cpu = time.monotonic(), time.process_time()

def peak_kb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

class Mortal(Storage):
    def listing(self, *where, **after):
        for one in super().listing(*where, **after):
            if one.key == die_at:
                told()
                os.kill(os.getpid(), signal.SIGKILL)
            yield one

def told(**more):
    took = {"wall_s": time.monotonic() - began, "cpu_s": time.process_time() - cpu}
    print(json.dumps({**took, "peak_kb": peak_kb(), "before_kb": before, **more}), flush=True)

settings, before = from_environment(), peak_kb()
done = backfilling.run(Database(url), Mortal(settings), settings, "default", window=10**9, send=lambda *_, **__: True)
told(made=done.made, seen=done.seen)
"""


@pytest.fixture(scope="module")
def large_bucket(stores: Stores, long: bool) -> Iterator[tuple[Settings, int, float]]:
    """A bucket of the real store with very many objects of one byte: the settings, how many, and how long the puts took in s."""
    count = int(os.environ.get("TEST_KEYS", "100000")) if long else 1_500
    settings = stores.settings.model_copy(update={"inbox_bucket": f"large-{secrets.token_hex(4)}"})
    store = Storage(settings)
    store.ensure_bucket(settings.inbox_bucket)
    began = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        for _ in threads.map(lambda number: store.put(settings.inbox_bucket, _key(number), b"x", "image/jpeg"), range(count)):
            pass
    yield settings, count, time.monotonic() - began
    store.client.delete_bucket(Bucket=settings.inbox_bucket)


def _key(number: int) -> str:
    return f"{number:06d}.jpg"


@pytest.mark.timeout(3600)
def test_a_large_bucket_of_the_real_store_gives_one_job_a_key_through_kills(
    db: Database, db_url: str, large_bucket: tuple[Settings, int, float], long: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, count, put_s = large_bucket
    environment = {**os.environ, **to_environment(settings)}
    runs = []
    for die_at in (*((_key(count // 3),) if long else ()), _key(2 * count // 3), ""):
        command = [sys.executable, "-c", REAL, db_url, die_at]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, stdout=subprocess.PIPE, check=False, timeout=3000)
        assert done.returncode == (-signal.SIGKILL if die_at else 0)
        runs.append(json.loads(done.stdout))

    assert (runs[-1]["seen"], runs[-1]["made"]) == (count, count)
    with db.read() as session:
        found = session.execute(select(func.count(), func.count(JobRow.key.distinct()), func.min(JobRow.key), func.max(JobRow.key))).one()
    assert tuple(found) == (count, count, _key(0), _key(count - 1))
    peak, base = max(run["peak_kb"] for run in runs), min(run["before_kb"] for run in runs)
    assert peak - base < 40_000, "it holds a page, not a bucket"
    wall, cpu = (sum(run[name] for run in runs) for name in ("wall_s", "cpu_s"))
    with capsys.disabled():
        print(
            f" [{db.engine.dialect.name}, {count:,} keys put in {put_s:.0f} s: {count / wall:,.0f} keys/s, "
            f"{count / cpu:,.0f} per CPU second, peak {peak / 1000:.0f} MB, {(peak - base) / 1000:.1f} above the start] ",
            end="",
        )


def test_fresh_uploads_go_first_in_the_broker_and_in_the_upkeep(
    db: Database, valkey_url: str, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker looks into its queues in their order, so that a fresh upload waits for one stage at most."""
    assert queues(Stage.EXTRACT) == ("interactive.extract", "extract", "backfill.extract")
    assert to_environment(Settings(broker_url=valkey_url))  # the queues are those of the programs: see test_embedded
    old = [ledger.accept(db, Upload("inbox", f"old/{number}.jpg", etag="e"), queue=Queue.BACKFILL).job_id for number in range(30)]
    fresh = ledger.accept(db, Upload("inbox", "fresh.jpg", etag="e")).job_id
    ledger.unwoken(db, [*old, fresh])
    sent: list[str] = []
    monkeypatch.setattr(upkeep, "wake", lambda job_id, stage, queue: sent.append(job_id) or True)
    monkeypatch.setattr(upkeep, "_messages", lambda: defaultdict(int))
    monkeypatch.setattr(upkeep, "WAKE_AT_MOST", 10)

    upkeep.wake_due(db, Settings())

    assert sent[0] == fresh
    assert len(sent) == 11


def test_a_consumer_takes_fresh_messages_before_old_ones(valkey_url: str) -> None:
    names = queues(Stage.EXTRACT)
    app = Celery("order", broker=valkey_url)
    app.conf.update(broker_transport_options={"queue_order_strategy": "priority", "global_keyprefix": "order-"})
    taken: list[str] = []
    with app.connection_for_write() as connection:
        producer = connection.Producer()
        channel = connection.channel()
        for name in names:
            Channel(name)(channel).declare()
        for number in range(5):
            for name in reversed(names):
                producer.publish({"in": name, "number": number}, routing_key=name, serializer="json")
        with connection.Consumer([Channel(name) for name in names], accept=["json"]) as consumer:
            consumer.qos(prefetch_count=1)
            consumer.register_callback(lambda body, message: (taken.append(body["in"]), message.ack()))
            while len(taken) < 15:
                connection.drain_events(timeout=10)
    assert taken == [name for name in names for _ in range(5)]
    Redis.from_url(valkey_url).flushdb()
