"""Uploads to a real SeaweedFS whose notifications are lost in part: the listing finds what nobody was told of."""

from __future__ import annotations

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from queue import Empty

import pytest
from botocore.exceptions import ClientError
from sqlalchemy import select

from pipeline import events, inboxkeeping
from pipeline.database import Database, JobRow
from pipeline.inboxes import Inbox
from pipeline.jobs import Queue, Upload
from pipeline.settings import Settings
from pipeline.storage import Storage
from tests.fixtures.stores import Stores
from tests.fixtures.web_services import Amazon
from workers import ingest

SEED = 9
STRANGE = ("a b+c", "100 %", "ünï ☃", "e\u0301 é", "日本", 'quote\'s "d"', "%2B%20", "~tilde&amp;")


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that were woken, in place of a broker's messages; and no object is too young for the listing."""
    found: list[str] = []
    monkeypatch.setattr(ingest, "wake", lambda job_id, *, queue: found.append(job_id) or True)
    monkeypatch.setattr(ingest, "GRACE_S", -60.0)
    return found


def jobs(db: Database) -> list[JobRow]:
    with db.read() as session:
        return list(session.scalars(select(JobRow)))


@pytest.mark.timeout(1200)
def test_the_listing_finds_every_upload_whose_event_was_dropped(
    stores: Stores, s3_settings: Settings, store: Storage, db: Database, woken: list[str], long: bool
) -> None:
    # The server that posts notifications was told of one bucket at its start.
    count = 1000 if long else 100
    chance = random.Random(SEED)
    folder = f"{db.engine.dialect.name}-{chance.randrange(16**6):x}"
    # Other tests leave their uploads in the same bucket.
    settings = s3_settings.model_copy(update={"inbox_bucket": stores.settings.inbox_bucket, "inbox_prefix": f"{folder}/"})
    keys = [f"{folder}/{number}/{chance.choice(STRANGE)}.jpg" for number in range(count)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(settings.inbox_bucket, key, key.encode(), "image/jpeg"), keys))

    told = heard(stores, settings, keys)
    dropped = set(chance.sample(keys, count // 10))
    bodies = [body for key, body in told.items() if key not in dropped]
    for body in chance.sample(bodies, len(bodies)) + chance.sample(bodies, len(bodies) // 5):  # in any order, some twice
        for upload in events.from_seaweedfs(body):
            ingest.take(db, settings, upload)
    before = Counter(job.key for job in jobs(db))
    lost = set(keys) - before.keys()

    swept = ingest.reconcile(db, store, settings)
    again = ingest.reconcile(db, store, settings)

    assert lost >= dropped
    assert (swept.found, again.found) == (len(lost), 0)
    made = Counter(job.key for job in jobs(db) if job.key.startswith(folder))
    assert made == Counter(keys)
    assert len(woken) == len(set(woken)) == len(jobs(db))
    print(f" [{count} uploads, {len(dropped)} events dropped, {len(lost) - len(dropped)} never came, {swept.found} found]")
    for key in keys:
        store.delete(settings.inbox_bucket, key)


def heard(stores: Stores, settings: Settings, keys: list[str]) -> dict[str, dict[str, object]]:
    """What the server posted of these uploads, by key; it posts each once, and may lose one."""
    found: dict[str, dict[str, object]] = {}
    wanted = set(keys)
    while wanted - found.keys():
        try:
            body = json.loads(stores.notified.get(timeout=10))
        except Empty:
            break
        for upload in events.from_seaweedfs(body):
            if upload.key in wanted:
                found[upload.key] = body
    assert len(found) > 0.95 * len(keys), "the server posts almost nothing"
    return found


def test_every_inbox_is_listed_with_its_own_settings_and_one_that_cannot_be_stops_no_other(
    s3_settings: Settings, store: Storage, db: Database, woken: list[str]
) -> None:
    press = s3_settings.models_bucket + "-press"
    store.ensure_bucket(press)
    try:
        for name, bucket in (("press", press), ("gone", "no-such-bucket-at-all"), ("off", press + "-off")):
            queue = Queue.INTERACTIVE if name == "press" else Queue.BULK
            inboxkeeping.add(db, s3_settings, Inbox(name, bucket, "in/", (".png",), queue=queue), by="test")
        inboxkeeping.change(db, s3_settings, "off", enabled=False, by="test")
        for bucket in (press, s3_settings.inbox_bucket):
            for key in ("in/a.png", "in/b.jpg", "c.png"):
                store.put(bucket, key, b"x", "image/png")

        places: dict[str, str] = {}
        assert ingest.reconcile_all(db, store, s3_settings, places, budget_s=9) == 4
        assert ingest.reconcile_all(db, store, s3_settings, places, budget_s=9) == 0
    finally:
        store.client.delete_bucket(Bucket=press)

    found = {(job.inbox, job.key, job.queue) for job in jobs(db)}
    assert found == {("press", "in/a.png", "interactive"), *(("default", key, "bulk") for key in ("in/a.png", "in/b.jpg", "c.png"))}


def test_old_objects_are_no_lost_uploads_they_wait_or_are_left_alone(
    s3_settings: Settings, store: Storage, db: Database, woken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = s3_settings.inbox_bucket
    for number in range(5):
        store.put(inbox, f"{number}.jpg", b"x", "image/jpeg")
    monkeypatch.setattr(ingest, "OLD_S", -3600.0)  # everything is old
    monkeypatch.setattr(ingest, "ROOM", 3)

    assert ingest.reconcile(db, store, s3_settings).found == 3
    assert {job.queue for job in jobs(db)} == {"backfill"}
    assert ingest.reconcile(db, store, s3_settings).found == 0, "there is no room before some are done"
    monkeypatch.setattr(ingest, "ROOM", 9)
    assert ingest.reconcile(db, store, s3_settings).found == 2

    made = inboxkeeping.add(db, s3_settings, Inbox("late", s3_settings.models_bucket + "-late"), by="test")
    store.ensure_bucket(made.bucket)
    try:
        store.put(made.bucket, "a.jpg", b"x", "image/jpeg")
        monkeypatch.setattr(ingest, "SKEW_S", -3600.0)  # it lay there before the inbox was made
        assert ingest.reconcile(db, store, s3_settings, inbox="late") == ingest.Swept(seen=1, found=0, after="")
    finally:
        store.client.delete_bucket(Bucket=made.bucket)


@pytest.fixture(params=["seaweedfs", "ministack", "moto"])
def at_versions(request: pytest.FixtureRequest, s3_settings: Settings) -> Settings:
    """Settings of a product whose inbox bucket keeps versions, except of `old.jpg`, which lay there before it did."""
    settings = s3_settings
    if request.param != "seaweedfs":
        amazon: Amazon = request.getfixturevalue(request.param)
        settings = Settings(inbox_bucket=amazon.bucket(), **amazon.settings)
    client = Storage(settings).client
    client.put_object(Bucket=settings.inbox_bucket, Key="old.jpg", Body=b"old")
    client.put_bucket_versioning(Bucket=settings.inbox_bucket, VersioningConfiguration={"Status": "Enabled"})
    return settings


def test_a_version_is_found_although_it_was_overwritten_since(
    at_versions: Settings, db: Database, woken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, store = at_versions.inbox_bucket, Storage(at_versions)
    puts = [("a.jpg", body) for body in (b"1", b"2", b"2", b"3")] + [("b ü+.jpg", b"4"), ("gone.jpg", b"5"), ("z.jpg", b"6")]
    made = [store.client.put_object(Bucket=inbox, Key=key, Body=body) for key, body in puts]
    store.delete(inbox, "gone.jpg")
    told = [
        Upload(inbox, key, put["VersionId"], put["ETag"], f"{number:02X}", 1, origin="sqs")
        for number, ((key, _), put) in enumerate(zip(puts, made, strict=True), start=1)
    ]
    heard = ingest.take(db, at_versions, told[0])
    by_etag = ingest.take(db, at_versions, Upload(inbox, "z.jpg", etag=made[-1]["ETag"], origin="submit"))
    asked = store.client.list_object_versions
    monkeypatch.setattr(store.client, "list_object_versions", lambda **how: asked(MaxKeys=2, **how))
    monkeypatch.setattr(ingest, "PAGE", 2)

    found, after = 0, "begin"
    while after:  # every part ends behind all versions of a key
        part = ingest.reconcile(db, store, at_versions, after=after if after != "begin" else "", budget_s=0)
        found, after = found + part.found, part.after
    again = ingest.reconcile(db, store, at_versions)

    assert heard is not None
    assert by_etag is not None
    assert heard.created
    assert by_etag.created
    assert (found, again.found) == (6, 0)
    assert [ingest.take(db, at_versions, event).created for event in told] == [False] * len(told)  # type: ignore[union-attr]
    fetched = [
        (job.key, store.fetch(job.bucket, job.key, version_id=job.version_id, etag=job.etag, max_bytes=9))
        for job in sorted(jobs(db), key=lambda job: (job.key, job.created_at))
        if job.key != "old.jpg"
    ]
    assert sorted(fetched) == sorted(puts)
    assert {job.version_id for job in jobs(db)} == {"", *(put["VersionId"] for put in made)}
    assert len(woken) == len(set(woken)) == len(puts) + 1


def test_a_version_overwritten_long_ago_is_left_alone(
    at_versions: Settings, db: Database, woken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Storage(at_versions)
    made = [store.client.put_object(Bucket=at_versions.inbox_bucket, Key="a.jpg", Body=body) for body in (b"1", b"2")]
    monkeypatch.setattr(ingest, "REPLACED_S", -3600.0)

    assert ingest.reconcile(db, store, at_versions) == ingest.Swept(seen=3, found=2, after="")
    assert {(job.key, job.version_id) for job in jobs(db)} == {("a.jpg", made[-1]["VersionId"]), ("old.jpg", "")}


@pytest.mark.parametrize("refused", ["get_bucket_versioning", "list_object_versions"])
def test_who_may_not_list_versions_lists_what_is_there(
    at_versions: Settings, db: Database, woken: list[str], monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    store = Storage(at_versions)
    for body in (b"1", b"2"):
        store.client.put_object(Bucket=at_versions.inbox_bucket, Key="a.jpg", Body=body)

    def refuse(**_: object) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied"}}, refused)

    monkeypatch.setattr(store.client, refused, refuse)
    assert ingest.reconcile(db, store, at_versions) == ingest.Swept(seen=2, found=2, after="")
