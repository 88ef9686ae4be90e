"""The straight way to the object store: taken where all is plain, and otherwise left to boto3, so that no answer differs."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import shortcut
from pipeline.settings import Settings
from pipeline.storage import ObjectTooLarge, SourceGone, Storage, StorageError

KEYS = ("plain.jpg", "with blank + plus.jpg", "ä/ö (1)~.jpg", "per%20cent?&=#.jpg", "a//b.jpg")


class Deaf:
    """boto3 that must not be needed."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"boto3 was asked to {name}")


@pytest.mark.parametrize("key", KEYS)
def test_what_is_put_is_there_for_everybody(store: Storage, s3_settings: Settings, key: str) -> None:
    real, store.client = store.client, Deaf()
    store.put(s3_settings.inbox_bucket, key, b"bytes", "image/jpeg")
    mine = store.fetch(s3_settings.inbox_bucket, key, max_bytes=100)

    answer = real.get_object(Bucket=s3_settings.inbox_bucket, Key=key)

    assert mine == answer["Body"].read() == b"bytes"
    assert answer["ContentType"] == "image/jpeg"


def test_another_version_is_not_given(store: Storage, s3_settings: Settings) -> None:
    bucket = s3_settings.inbox_bucket
    store.put(bucket, "a.jpg", b"first", "image/jpeg")
    etag = store.head(bucket, "a.jpg").etag
    assert store.fetch(bucket, "a.jpg", etag=etag, max_bytes=100) == b"first"

    store.put(bucket, "a.jpg", b"second", "image/jpeg")

    with pytest.raises(SourceGone):
        store.fetch(bucket, "a.jpg", etag=etag, max_bytes=100)


def test_refusals_are_told_as_before(store: Storage, s3_settings: Settings) -> None:
    store.put(s3_settings.inbox_bucket, "a.jpg", b"0123456789", "image/jpeg")

    with pytest.raises(ObjectTooLarge):
        store.fetch(s3_settings.inbox_bucket, "a.jpg", max_bytes=9)
    with pytest.raises(SourceGone):
        store.fetch(s3_settings.inbox_bucket, "none.jpg", max_bytes=9)
    with pytest.raises(StorageError) as refused:
        store.put("no-such-bucket-here", "a.jpg", b"", "image/jpeg")
    assert refused.value.permanent


def test_bytes_that_change_on_the_way_are_not_kept(store: Storage, s3_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        @staticmethod
        def crc32(data: bytes) -> int:
            return 5

    monkeypatch.setattr(shortcut, "isal_zlib", Wrong)
    store.client = Deaf()

    with pytest.raises(AssertionError, match="put_object"):
        store.put(s3_settings.inbox_bucket, "a.jpg", b"bytes", "image/jpeg")

    with pytest.raises(SourceGone):
        Storage(s3_settings).head(s3_settings.inbox_bucket, "a.jpg")


def test_a_server_that_is_away_is_boto3s_to_judge(s3_settings: Settings) -> None:
    away = Storage(s3_settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}))

    with pytest.raises(StorageError, match="could not be reached"):
        away.fetch("inbox", "a.jpg", max_bytes=10)
