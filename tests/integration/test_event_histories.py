"""Generated histories of upload events: told twice, late, out of order, by several adapters at once; each upload has one job.

`TEST_LONG=1 pytest tests/integration/test_event_histories.py` tells 10,000 histories to each database.
"""

from __future__ import annotations

import base64
import json
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from sqlalchemy import func, select

from pipeline import events, identity, inboxes, ledger
from pipeline.database import Database, JobRow
from pipeline.jobs import Stage, Status, Upload
from pipeline.settings import Settings
from tests.fixtures.web_services import Amazon
from workers import ingest
from workers.consuming import Consumer

SEED = 20261126
LETTERS = [
    "a",
    "B",
    "é",
    "e\u0301",
    "☃",
    "日",
    "🙂",
    " ",
    "+",
    "%",
    "%20",
    "%2B",
    "/",
    "&",
    "=",
    "?",
    "#",
    '"',
    "'",
    "\\",
    "<",
    "~",
    "\u200d",
    "\t",
]
NAMES = ["photo.jpg", "IMG_0001.JPEG", "scan.png", "no-suffix", "x.webp"]
SKEW_S = 3600.0


@dataclass(frozen=True)
class Put:
    """One upload, as the store knows it."""

    bucket: str
    key: str
    version_id: str
    etag: str
    sequencer: str


@dataclass(frozen=True)
class History:
    """Uploads to one key in order, and what arrives of them: messages of queues and webhooks as text, or a listing."""

    puts: tuple[Put, ...]
    arrivals: tuple[tuple[str, Put, str], ...]
    """Way, upload, body."""


def histories(seed: int, count: int, bucket: str) -> Iterator[History]:
    """Random histories; the same for the same seed."""
    chance = random.Random(seed)
    for number in range(count):
        versioned = chance.random() < 0.4
        strange = "".join(chance.choices(LETTERS, k=chance.randint(0, 6)))
        key = f"{number:x}/{strange}{chance.choice(NAMES)}"
        puts = tuple(_puts(chance, bucket, key, versioned))
        # Whether the sequencers' lengths differ, or the listing is asked before the last event: everything may be.
        arrivals = []
        for put in puts:
            ways = chance.choices(("sqs", "sns", "bus", "minio", "seaweedfs", "submit"), k=chance.choice((1, 1, 1, 2, 3)))
            arrivals += [(way, put, BODIES[way](put)) for way in ways]
        arrivals += [("sweep", puts[-1], "")] * chance.choice((0, 1, 1, 2))
        if versioned and chance.random() < 0.5:  # who may list versions sees them all
            arrivals += [("versions", put, "") for put in puts]
        chance.shuffle(arrivals)
        yield History(puts, tuple(arrivals))


def _puts(chance: random.Random, bucket: str, key: str, versioned: bool) -> Iterator[Put]:
    at = chance.randrange(16**8)
    etag = ""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        at += chance.choice((1, 16, 256, 4096))
        etag = etag if etag and chance.random() < 0.3 else f"{chance.randrange(16**32):032x}"  # the same bytes again, now and then
        # Amazon pads none of them, and compares them as if the shorter had zeros behind it: so does whoever orders them.
        yield Put(
            bucket, key, f"v{chance.randrange(16**16):016x}" if versioned else "", etag, f"{at:014X}" + "00" * chance.choice((0, 0, 1))
        )


def _about(put: Put, **names: str) -> dict[str, Any]:
    found = {"key": put.key, "size": 1, names["etag"]: put.etag, "sequencer": put.sequencer}
    return found | ({names["version"]: put.version_id} if put.version_id else {})


def _records(put: Put, source: str = "aws:s3") -> dict[str, Any]:
    about = _about(put, etag="eTag", version="versionId") | {"key": quote_plus(put.key, safe="/" if len(put.key) % 2 else "")}
    return {"Records": [{"eventSource": source, "eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": put.bucket}, "object": about}}]}


def _bus(put: Put) -> dict[str, Any]:
    detail = {"bucket": {"name": put.bucket}, "object": _about(put, etag="etag", version="version-id")}
    return {"source": "aws.s3", "detail-type": "Object Created", "detail": detail}


def _seaweedfs(put: Put) -> dict[str, Any]:
    """What a filer posts: its sequencer is the time that its chunks were written, so that of the others is made that time."""
    body: dict[str, Any] = json.loads(SEAWEEDFS)
    path = f"/buckets/{put.bucket}/{put.key}" + (f".versions/v_{put.version_id}" if put.version_id else "")
    folder, _, name = path.rpartition("/")
    body["key"], body["message"]["new_parent_path"] = path, folder
    new = body["message"]["new_entry"]
    new["name"], new["attributes"]["mtime"] = name, 0
    new["chunks"][0]["modified_ts_ns"] = int(put.sequencer.ljust(16, "0"), 16)
    said = {"Seaweed-X-Amz-ETag": put.etag} | ({"Seaweed-X-Amz-Version-Id": put.version_id} if put.version_id else {})
    new["extended"] = {name: base64.b64encode(value.encode()).decode() for name, value in said.items()}
    return body


SEAWEEDFS = json.dumps(json.loads((Path(__file__).parents[1] / "data" / "seaweedfs_events.json").read_text())[0]["body"])
QUEUES = ("sqs", "sns", "bus")
BODIES = {
    "sqs": lambda put: json.dumps(_records(put)),
    "sns": lambda put: json.dumps({"Type": "Notification", "TopicArn": "t", "Message": json.dumps(_records(put))}),
    "bus": lambda put: json.dumps(_bus(put)),
    "minio": lambda put: json.dumps(_records(put, "minio:s3")),
    "seaweedfs": lambda put: json.dumps(_seaweedfs(put)),
    "submit": lambda put: "",
}


def told(way: str, put: Put, body: str) -> list[Upload]:
    if way in ("submit", "versions"):  # both ask the store, which knows the version but no sequencer
        return [Upload(put.bucket, put.key, put.version_id, put.etag, "", 1, origin="submit" if way == "submit" else "sweep")]
    if way == "sweep":
        return [Upload(put.bucket, put.key, "", put.etag, "", 1, origin="sweep")]
    return events.from_seaweedfs(json.loads(body)) if way == "seaweedfs" else events.from_queue(body)


def expected(history: History) -> tuple[int, int]:
    """The fewest and the most jobs a history may make.

    Of a versioned bucket each version has one. Of an unversioned one the newest upload has one in any case; an older one
    only if it was told of before a newer one: afterwards its bytes are gone. Where the same bytes were uploaded twice, who
    asks the store (a listing, a submission) cannot say which of the uploads they have seen.
    """
    if history.puts[0].version_id:
        return len(history.puts), len(history.puts)
    asked = any(way in ("sweep", "submit") for way, _, _ in history.arrivals)
    if asked and len({put.etag for put in history.puts}) < len(history.puts):
        return 1, len(history.puts)
    newest, known = -1, set[int]()
    for way, put, _ in history.arrivals:
        at = history.puts.index(put)
        if way in ("sweep", "submit"):
            known.add(at)
        elif at in known or at > newest:
            newest = max(newest, at)
            known.add(at)
    return len(known), len(known)


@pytest.mark.timeout(3000)
def test_each_upload_has_one_job_whatever_becomes_of_its_events(
    db: Database, monkeypatch: pytest.MonkeyPatch, long: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ingest, "wake", lambda *_, **__: True)
    settings = Settings()
    among = inboxes.directory(settings, db)
    count = 10_000 if long else 250
    every = list(histories(SEED, count, settings.inbox_bucket))
    chance = random.Random(SEED)
    lines = [(chance.random() + place, history, arrival) for history in every for place, arrival in enumerate(history.arrivals)]
    # The histories are told through each other, each in its own order.
    arrivals = 0
    for _, _, (way, put, body) in sorted(lines, key=lambda line: line[0]):
        for upload in told(way, put, body):
            arrivals += 1
            ingest.take(db, settings, upload, among=among)

    made: dict[str, list[JobRow]] = defaultdict(list)
    with db.read() as session:
        for job in session.scalars(select(JobRow)):
            made[job.key].append(job)
    for history in every:
        least, most = expected(history)
        found = made.pop(history.puts[0].key, [])
        assert least <= len(found) <= most, (history, [(job.version_id, job.etag, job.sequencer) for job in found])
        described = Counter((job.version_id, job.etag, job.sequencer) for job in found)
        assert set(described.values()) == {1}
        last = history.puts[-1]
        newest = [job for job in found if (not job.version_id or job.version_id == last.version_id) and job.etag == last.etag]
        assert newest, "the newest upload has a job"
        for job in found:  # what it will be fetched by is what one of the uploads was
            assert any((job.version_id, job.etag) == (put.version_id, put.etag) for put in history.puts)
    assert made == {}, "no job is of a key that was never uploaded"

    drained = drain(db)
    with db.read() as session:
        standing = dict(session.execute(select(JobRow.status, func.count()).group_by(JobRow.status)).all())
    assert standing == {Status.REFUSED.value: drained}, "none is stuck"
    with capsys.disabled():
        print(f" [seed {SEED}: {count} histories, {arrivals} events, {drained} jobs] ", end="")


@pytest.mark.timeout(300)
def test_histories_that_come_through_a_queue_to_several_consumers_make_each_job_once(
    amazon: Amazon, at_amazon: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queues keep no order, so here it is only said which uploads must have a job, and that none has two."""
    monkeypatch.setattr(ingest, "wake", lambda *_, **__: True)
    every = [
        history
        for history in histories(SEED, 40, at_amazon.inbox_bucket)
        if all(any(way in QUEUES for way, other, _ in history.arrivals if other is put) for put in history.puts)
    ]
    bodies = [body for history in every for way, _, body in history.arrivals if way in QUEUES]
    random.Random(SEED).shuffle(bodies)
    for first in range(0, len(bodies), 10):
        entries = [{"Id": str(number), "MessageBody": body} for number, body in enumerate(bodies[first : first + 10])]
        amazon.sqs.send_message_batch(QueueUrl=at_amazon.sqs_url, Entries=entries)

    def read(_: int) -> None:
        reader = Consumer(db, at_amazon, at_amazon.sqs_url, threading.Event(), poll_s=0)
        while amazon.waiting(at_amazon.sqs_url) != (0, 0):
            reader.once()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(read, range(3), timeout=240))

    made: dict[str, list[JobRow]] = defaultdict(list)
    with db.read() as session:
        for job in session.scalars(select(JobRow)):
            made[job.key].append(job)
    assert len(every) > 10
    assert any(len(history.puts) > 1 for history in every)
    for history in every:
        found = Counter((job.version_id, job.etag, identity.normal(_upload(job)).sequencer) for job in made.pop(history.puts[0].key))
        wanted = {(put.version_id, put.etag, identity.normal(_upload(put)).sequencer) for put in history.puts}
        assert set(found.values()) == {1}
        assert found.keys() <= wanted
        newest = history.puts[-1]
        assert (newest.version_id, newest.etag, identity.normal(_upload(newest)).sequencer) in found
        if newest.version_id:
            assert found.keys() == wanted
    assert made == {}


def _upload(about: Put | JobRow) -> Upload:
    return Upload(about.bucket, about.key, about.version_id, about.etag, about.sequencer)


def drain(db: Database) -> int:
    """Let every job that can be had come to an end; returns how many did."""
    with db.read() as session:
        waiting = list(session.scalars(select(JobRow.id)))
    for job_id in waiting:
        claim = ledger.claim(db, job_id, Stage.EXTRACT, worker="w", lease_s=60, max_attempts=3)
        assert claim is not None
        assert ledger.refuse(db, claim, "It was only a test.")
    return len(waiting)
