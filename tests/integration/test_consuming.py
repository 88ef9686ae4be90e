"""Upload events out of queues, on two emulators of Amazon's services and on both databases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from pipeline import faults, inquiry, ledger
from pipeline.database import Database, JobRow, PauseRow
from pipeline.inboxes import Inbox
from pipeline.inboxkeeping import add, change
from pipeline.jobs import Queue, Stage, Upload
from pipeline.settings import Settings, to_environment
from pipeline.storage import SourceGone, storage
from tests.fixtures.stores import wait_until
from tests.fixtures.web_services import Amazon
from workers import ingest
from workers.consuming import Consumer, Consumers, urls

STRANGE = (
    "plain.jpg",
    "a b+c%20d/ünï ☃.jpg",
    "a%2Fb.png",
    "plus+plus++.jpg",
    "100 %.jpg",
    "%E2%98%83.webp",
    "日本/写真.jpeg",
    "e\u0301 and é.jpg",
    'quote\'s "double" & <angle>.jpg',
    "no-suffix",
    "UPPER.JPG",
    "a/very/" + "long/" * 60 + "way.jpg",
)


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Queue]]:
    """The jobs that were woken, in place of a broker's messages."""
    found: list[tuple[str, Queue]] = []

    def wake(job_id: str, *, queue: Queue) -> bool:
        found.append((job_id, queue))
        return True

    monkeypatch.setattr(ingest, "wake", wake)
    return found


def consumer(db: Database, settings: Settings, **other: Any) -> Consumer:
    return Consumer(db, settings, settings.sqs_url, threading.Event(), poll_s=0, **other)


def emptied(amazon: Amazon, reader: Consumer, queue: str) -> None:
    """Read until nothing waits and nothing is under way."""

    def empty() -> bool:
        reader.once()
        return amazon.waiting(queue) == (0, 0)

    wait_until(empty, "the end of the queue", seconds=30)


def jobs(db: Database) -> list[JobRow]:
    with db.read() as session:
        return list(session.scalars(select(JobRow).order_by(JobRow.created_at, JobRow.id)))


@pytest.mark.parametrize("way", ["tell", "tell_by_topic", "tell_by_bus"])
def test_an_upload_is_one_job_whichever_way_it_is_told(
    amazon: Amazon, at_amazon: Settings, db: Database, woken: list[tuple[str, Queue]], way: str
) -> None:
    getattr(amazon, way)(at_amazon.inbox_bucket, at_amazon.sqs_url)
    for key in STRANGE:
        amazon.s3.put_object(Bucket=at_amazon.inbox_bucket, Key=key, Body=b"x")
    amazon.s3.put_object(Bucket=at_amazon.inbox_bucket, Key="folder/", Body=b"")
    amazon.s3.put_object(Bucket=at_amazon.inbox_bucket, Key="notes.txt", Body=b"x")
    amazon.s3.delete_object(Bucket=at_amazon.inbox_bucket, Key=STRANGE[0])

    emptied(amazon, consumer(db, at_amazon), at_amazon.sqs_url)

    made = jobs(db)
    assert sorted(job.key for job in made) == sorted(STRANGE)
    assert {job.origin for job in made} == {"sqs"}
    assert sorted(woken) == sorted((job.id, Queue.BULK) for job in made)


def record(bucket: str, key: str, **about: Any) -> dict[str, Any]:
    return {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": 1, **about}}}


def test_a_message_of_several_records_makes_a_job_of_each(
    amazon: Amazon, at_amazon: Settings, db: Database, woken: list[tuple[str, Queue]]
) -> None:
    records = [record(at_amazon.inbox_bucket, f"{number}.jpg", eTag="e", sequencer=f"0{number}") for number in range(5)]
    amazon.sqs.send_message(QueueUrl=at_amazon.sqs_url, MessageBody=json.dumps({"Records": [*records, records[0]]}))

    emptied(amazon, consumer(db, at_amazon), at_amazon.sqs_url)

    assert sorted(job.key for job in jobs(db)) == [f"{number}.jpg" for number in range(5)]
    assert len(woken) == 5


def test_of_a_versioned_bucket_each_version_is_an_upload_and_is_fetched_as_it_was(
    ministack: Amazon, db: Database, db_url: str, woken: list[tuple[str, Queue]]
) -> None:
    # MiniStack says no version to EventBridge, and Moto none to queues; so what AWS says is said by hand here.
    bucket, queue = ministack.bucket(versioned=True), ministack.queue()
    settings = Settings(inbox_bucket=bucket, sqs_url=queue, database_url=db_url, **ministack.settings)
    for number, body in enumerate((b"first", b"second")):
        put = ministack.s3.put_object(Bucket=bucket, Key="a.jpg", Body=body)
        told = record(bucket, "a.jpg", eTag=put["ETag"].strip('"'), versionId=put["VersionId"], sequencer=f"0{number}")
        ministack.sqs.send_message(QueueUrl=queue, MessageBody=json.dumps({"Records": [told]}))
    ministack.s3.delete_object(Bucket=bucket, Key="a.jpg")

    emptied(ministack, consumer(db, settings), queue)

    assert [_fetched(settings, job) for job in jobs(db)] == [b"first", b"second"]


def _fetched(settings: Settings, job: JobRow) -> bytes:
    return storage(settings).fetch(job.bucket, job.key, version_id=job.version_id, etag=job.etag, max_bytes=100)


def test_what_was_replaced_or_deleted_before_it_was_read_is_gone_and_nothing_else_is_judged_for_it(
    amazon: Amazon, at_amazon: Settings, db: Database, woken: list[tuple[str, Queue]]
) -> None:
    bucket = at_amazon.inbox_bucket
    for key, body in (("replaced.jpg", b"old"), ("replaced.jpg", b"new"), ("deleted.jpg", b"x"), ("kept.jpg", b"kept")):
        amazon.s3.put_object(Bucket=bucket, Key=key, Body=body)
    amazon.s3.delete_object(Bucket=bucket, Key="deleted.jpg")

    emptied(amazon, consumer(db, at_amazon), at_amazon.sqs_url)

    found: dict[str, list[bytes | None]] = {}
    for job in jobs(db):
        try:
            found.setdefault(job.key, []).append(_fetched(at_amazon, job))
        except SourceGone:
            found.setdefault(job.key, []).append(None)
    old_and_new = found.pop("replaced.jpg")
    assert old_and_new[-1] == b"new" or old_and_new == [b"new", None]  # queues keep no order
    assert b"old" not in old_and_new
    assert found == {"deleted.jpg": [None], "kept.jpg": [b"kept"]}


class Told:
    """A queue that has one message, and says what is deleted."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.body = json.dumps({"Records": records})
        self.received = self.deleted = 0

    def receive_message(self, **_: Any) -> dict[str, Any]:
        self.received += 1
        return {"Messages": [{"MessageId": "m", "ReceiptHandle": "r", "Body": self.body}]}

    def delete_message_batch(self, **given: Any) -> dict[str, Any]:
        self.deleted += len(given["Entries"])
        return {}


@pytest.mark.parametrize(("bad", "deleted"), [("a%00b.jpg", 0), ("b.jpg", 1)])
def test_a_record_that_cannot_be_stored_keeps_no_other_of_its_message_waiting(
    db: Database, woken: list[tuple[str, Queue]], bad: str, deleted: int
) -> None:
    settings = Settings(sqs_url="http://127.0.0.1:1/queue")
    sqs = Told([record(settings.inbox_bucket, bad), record(settings.inbox_bucket, "good.jpg")])
    consumer(db, settings, sqs=sqs).once()
    assert "good.jpg" in [job.key for job in jobs(db)]
    assert sqs.deleted == deleted, "what was refused in part is left to the dead-letter queue"


def test_several_consumers_share_a_queue_and_make_each_job_once(
    amazon: Amazon, at_amazon: Settings, db: Database, woken: list[tuple[str, Queue]], long: bool
) -> None:
    uploads = 400 if long else 40
    for number in range(uploads):
        amazon.s3.put_object(Bucket=at_amazon.inbox_bucket, Key=f"{number} +.jpg", Body=b"x")
    deleted = Counter[int]()

    def read(which: int) -> None:
        reader = consumer(db, at_amazon)
        while amazon.waiting(at_amazon.sqs_url) != (0, 0):
            deleted[which] += reader.once()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4), timeout=240))

    assert Counter(job.key for job in jobs(db)) == Counter(f"{number} +.jpg" for number in range(uploads))
    assert len({job_id for job_id, _ in woken}) == len(woken) == uploads
    assert sum(deleted.values()) >= uploads


@pytest.mark.timeout(900)
def test_a_consumer_killed_between_commit_and_delete_makes_no_job_twice(
    ministack: Amazon, db: Database, db_url: str, valkey_url: str, tmp_path: Path, long: bool
) -> None:
    bucket, queue, orders, rounds = ministack.bucket(), ministack.queue(VisibilityTimeout="2"), tmp_path / "orders", 15 if long else 1
    ministack.tell(bucket, queue)
    settings = Settings(inbox_bucket=bucket, sqs_url=queue, database_url=db_url, broker_url=valkey_url, **ministack.settings)
    for number in range(rounds):
        for which in range(3):
            ministack.s3.put_object(Bucket=bucket, Key=f"{number}/{which}.jpg", Body=b"x")
        faults.give(orders, faults.Order("queue.committed", "kill"))
        dying = started(settings.model_copy(update={"faults": orders, "faults_allowed": True}))
        assert dying.wait(60) == -signal.SIGKILL
        assert sum(ministack.waiting(queue)) > 0, "nothing was deleted of what it had taken"
    living = started(settings)
    try:
        wait_until(lambda: ministack.waiting(queue) == (0, 0), "the end of the queue", seconds=60)
    finally:
        living.kill()
        living.wait()

    expected = Counter(f"{number}/{which}.jpg" for number in range(rounds) for which in range(3))
    assert Counter(job.key for job in jobs(db)) == expected


def started(settings: Settings) -> subprocess.Popen[bytes]:
    """A consumer, as the stack starts it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")}
    return subprocess.Popen([sys.executable, "-m", "workers.consuming"], env=kept | to_environment(settings), stdin=subprocess.DEVNULL)


def test_what_cannot_be_read_is_put_aside_and_holds_up_nobody(
    amazon: Amazon, at_amazon: Settings, db: Database, woken: list[tuple[str, Queue]]
) -> None:
    dead = amazon.queue()
    redrive = json.dumps({"deadLetterTargetArn": amazon.arn(dead), "maxReceiveCount": "3"})
    amazon.sqs.set_queue_attributes(QueueUrl=at_amazon.sqs_url, Attributes={"RedrivePolicy": redrive, "VisibilityTimeout": "0"})
    too_long = {"Records": [record(at_amazon.inbox_bucket, "k" * 2000 + ".jpg")]}
    poison = ["this is no JSON", json.dumps({"Records": [{"eventName": "ObjectCreated:Put"}]}), json.dumps(too_long), "[]"]
    for body in poison:
        amazon.sqs.send_message(QueueUrl=at_amazon.sqs_url, MessageBody=body)
    amazon.s3.put_object(Bucket=at_amazon.inbox_bucket, Key="good.jpg", Body=b"x")

    emptied(amazon, consumer(db, at_amazon), at_amazon.sqs_url)

    assert [job.key for job in jobs(db)] == ["good.jpg"]
    found: list[str] = []
    while messages := amazon.sqs.receive_message(QueueUrl=dead, MaxNumberOfMessages=10, VisibilityTimeout=60).get("Messages"):
        found += [message["Body"] for message in messages]
    assert sorted(found) == sorted(poison)


@pytest.mark.parametrize("readable", [False, True])
def test_while_the_database_is_away_or_full_nothing_is_taken_from_the_queue(
    db: Database, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    settings = Settings(sqs_url="http://127.0.0.1:1/queue")
    sqs = Told([record(settings.inbox_bucket, "a.jpg")])
    tries: list[float | None] = []

    class Patient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            tries.append(timeout)
            if len(tries) == 5:
                monkeypatch.undo()
                monkeypatch.setattr(ingest, "wake", lambda *_, **__: self.set() or True)
            return True

    def away(*_: object, **__: object) -> None:
        raise OperationalError("insert", {}, Exception("gone"))

    if not readable:
        monkeypatch.setattr(db, "read", away)
    monkeypatch.setattr(db, "write", away)
    monkeypatch.setattr(ledger, "brief", away)
    Consumer(db, settings, settings.sqs_url, Patient(), sqs=sqs, poll_s=0).run()

    assert tries == [1.0, 2.0, 5.0, 15.0, 30.0], "each wait is longer than the one before"
    assert (sqs.received, sqs.deleted) == (2, 1), "it was tried once in vain, and once when all was well"
    assert [job.key for job in jobs(db)] == ["a.jpg"]
    with db.read() as session:
        assert session.scalars(select(PauseRow)).all() == [], "what was written to see whether it can be is gone"


def test_each_queue_of_an_enabled_inbox_is_read_and_no_other(ministack: Amazon, db: Database, db_url: str) -> None:
    settings = Settings(database_url=db_url, **ministack.settings)
    queues = {name: ministack.queue() for name in ("one", "two")}
    for name, queue in queues.items():
        add(db, settings, Inbox(name, f"bucket-{name}", source="sqs", sqs_url=queue), by="test")
    assert urls(settings, db) == set(queues.values())
    stopping, running = threading.Event(), []

    class Idle:
        def __init__(self, _: Database, __: Settings, url: str, stop: threading.Event) -> None:
            self.url, self.stop = url, stop
            running.append(self)

        def run(self) -> None:
            self.stop.wait(30)

    following = Consumers(db, settings, stopping, make=Idle)  # type: ignore[arg-type]
    assert following.look() == set(queues.values())
    change(db, settings, "two", enabled=False, by="test")
    assert following.look() == {queues["one"]}
    assert {one.url: one.stop.is_set() for one in running} == {queues["one"]: False, queues["two"]: True}
    stopping.set()
    following.run()
    assert all(one.stop.is_set() for one in running)


def test_an_event_of_an_inbox_makes_its_job_there_and_not_elsewhere(
    ministack: Amazon, db: Database, db_url: str, woken: list[tuple[str, Queue]]
) -> None:
    default, press, queue = ministack.bucket(), ministack.bucket(), ministack.queue()
    settings = Settings(inbox_bucket=default, sqs_url=queue, database_url=db_url, **ministack.settings)
    add(db, settings, Inbox("press", press, "in/", (".jpg",), queue=Queue.INTERACTIVE, source="sqs", sqs_url=queue), by="test")
    for bucket in (default, press):
        ministack.tell(bucket, queue)
        for key in ("in/a.jpg", "in/b.png", "elsewhere/c.jpg"):
            ministack.s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    emptied(ministack, consumer(db, settings), queue)

    found = {(job.inbox, job.bucket, job.key, job.queue) for job in jobs(db)}
    assert found == {("press", press, "in/a.jpg", "interactive")} | {
        ("default", default, key, "bulk") for key in ("in/a.jpg", "in/b.png", "elsewhere/c.jpg")
    }
    claim = ledger.claim(db, inquiry.page(db, prefix="in/a", limit=1)[0][0].id, Stage.EXTRACT, worker="w", lease_s=9, max_attempts=3)
    assert claim is not None
    assert claim.upload == Upload(
        claim.upload.bucket, "in/a.jpg", etag=claim.upload.etag, sequencer=claim.upload.sequencer, size=1, origin="sqs"
    )
