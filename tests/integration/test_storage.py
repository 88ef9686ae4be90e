"""Against a real SeaweedFS, and its real notifications."""

import hashlib
import json
from queue import Empty, Queue

import pytest

from pipeline.events import from_seaweedfs
from pipeline.jobs import Upload
from pipeline.settings import Settings
from pipeline.storage import ObjectTooLarge, SourceGone, Storage, StorageError
from tests.fixtures.stores import Stores

STRANGE = "a b+c%20d/ünï ☃.jpg"


def test_what_was_put_is_fetched_by_etag_and_described(store: Storage, s3_settings: Settings) -> None:
    store.put(s3_settings.inbox_bucket, STRANGE, b"picture", "image/jpeg")

    found = store.head(s3_settings.inbox_bucket, STRANGE)

    assert (found.key, found.size, found.etag, found.version_id) == (STRANGE, 7, hashlib.md5(b"picture").hexdigest(), "")  # noqa: S324
    assert store.fetch(s3_settings.inbox_bucket, STRANGE, etag=found.etag, max_bytes=7) == b"picture"
    assert list(store.listing(s3_settings.inbox_bucket)) == [found]


def test_a_replaced_object_is_gone_for_whoever_wants_the_old_one(store: Storage, s3_settings: Settings) -> None:
    inbox = s3_settings.inbox_bucket
    store.put(inbox, "a.jpg", b"old", "image/jpeg")
    etag = store.head(inbox, "a.jpg").etag
    store.put(inbox, "a.jpg", b"new", "image/jpeg")

    with pytest.raises(SourceGone, match=r"a\.jpg was deleted or replaced") as gone:
        store.fetch(inbox, "a.jpg", etag=etag, max_bytes=10)

    assert gone.value.permanent
    assert store.fetch(inbox, "a.jpg", max_bytes=10) == b"new"


def test_versions_are_fetched_by_their_id(store: Storage, s3_settings: Settings) -> None:
    inbox = s3_settings.inbox_bucket
    store.client.put_bucket_versioning(Bucket=inbox, VersioningConfiguration={"Status": "Enabled"})
    versions = [store.client.put_object(Bucket=inbox, Key="a.jpg", Body=body)["VersionId"] for body in (b"one", b"two")]
    store.delete(inbox, "a.jpg")

    assert [store.fetch(inbox, "a.jpg", version_id=version, max_bytes=10) for version in versions] == [b"one", b"two"]
    with pytest.raises(SourceGone):
        store.fetch(inbox, "a.jpg", max_bytes=10)
    with pytest.raises(SourceGone):
        store.fetch(inbox, "a.jpg", version_id="0" * 32, max_bytes=10)


def test_too_large_an_object_is_refused_unread(store: Storage, s3_settings: Settings) -> None:
    store.put(s3_settings.inbox_bucket, "a.jpg", bytes(1001), "image/jpeg")
    with pytest.raises(ObjectTooLarge, match="1,001 bytes; at most 1,000"):
        store.fetch(s3_settings.inbox_bucket, "a.jpg", max_bytes=1000)


def test_a_listing_goes_on_behind_a_key_and_over_pages(store: Storage, s3_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"d/{number:02d} ü.jpg" for number in range(7)]
    for key in keys:
        store.put(s3_settings.inbox_bucket, key, key.encode(), "image/jpeg")
    store.put(s3_settings.inbox_bucket, "other.jpg", b"x", "image/jpeg")
    asked = store.client.list_objects_v2
    monkeypatch.setattr(store.client, "list_objects_v2", lambda **how: asked(MaxKeys=2, **how))

    assert [one.key for one in store.listing(s3_settings.inbox_bucket, "d/")] == keys
    assert [one.key for one in store.listing(s3_settings.inbox_bucket, "d/", start_after=keys[3])] == keys[4:]


def test_deleting_what_is_not_there_is_no_error(store: Storage, s3_settings: Settings) -> None:
    store.delete(s3_settings.inbox_bucket, "never.jpg")
    with pytest.raises(SourceGone):
        store.head(s3_settings.inbox_bucket, "never.jpg")


def test_buckets_are_made_once(store: Storage, s3_settings: Settings) -> None:
    fresh = s3_settings.model_copy(update={"models_bucket": f"more-{s3_settings.models_bucket}"})
    assert Storage(fresh).ensure_buckets() == [fresh.models_bucket]
    assert Storage(fresh).ensure_buckets() == []


def test_a_bucket_that_is_missing_is_no_hope(store: Storage) -> None:
    with pytest.raises(StorageError, match="NoSuchBucket") as refused:
        store.put("no-such-bucket", "a.jpg", b"x", "image/jpeg")
    assert refused.value.permanent


def test_a_wrong_key_may_be_put_right(s3_settings: Settings) -> None:
    stranger = Storage(Settings.model_validate({**dict(s3_settings), "s3_secret_key": "wrong"}))
    with pytest.raises(StorageError, match="SignatureDoesNotMatch") as refused:
        stranger.fetch(s3_settings.inbox_bucket, "a.jpg", max_bytes=1)
    assert not refused.value.permanent


def test_a_store_that_is_away_is_tried_again(s3_settings: Settings) -> None:
    away = Storage(s3_settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}))
    with pytest.raises(StorageError, match="could not be reached") as refused:
        away.head("inbox", "a.jpg")
    assert not refused.value.permanent


def test_a_real_notification_tells_what_the_store_says_of_the_object(stores: Stores) -> None:
    settings, store = stores.settings, Storage(stores.settings)
    _drain(stores.notified)
    store.put(settings.inbox_bucket, STRANGE, b"picture", "image/jpeg")
    store.put(settings.results_bucket, "own.png", b"picture", "image/png")

    uploads: list[Upload] = []
    while not uploads:
        uploads = from_seaweedfs(json.loads(stores.notified.get(timeout=5)))

    [upload], found = uploads, store.head(settings.inbox_bucket, STRANGE)
    assert (upload.bucket, upload.key, upload.etag, upload.size) == (settings.inbox_bucket, STRANGE, found.etag, found.size)
    assert abs(int(upload.sequencer, 16) / 1e9 - found.modified) < 1.5


def _drain(queue: "Queue[bytes]") -> None:
    try:
        while True:
            queue.get_nowait()
    except Empty:
        return
