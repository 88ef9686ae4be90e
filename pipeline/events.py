"""What object stores say when something was uploaded, made into `Upload`s. Pure functions; nothing is fetched.

SeaweedFS (4.48), as measured on the real server: one POST per changed entry, sent once and never again, in no certain
order, sometimes before the upload's own answer. The entry's path is raw UTF-8. A new object is a `create`, an
overwritten one an `update`; so is a change of tags, which is told apart by its unchanged chunks. The entry's `mtime` is
whole seconds, each chunk's `modified_ts_ns` is exact. A versioned object is the entry
`{key}.versions/v_{version id}`. Multipart parts live under `/.uploads/` and are not objects yet.

S3 event records (AWS, MinIO): form-encoded keys, several records to a message, a `sequencer` that orders one key. They
come as they are, or as the text inside an SNS notification. EventBridge writes of one object each, in a shape of its own,
and with the key as it is.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import unquote_plus

from pipeline.jobs import Upload

BUCKETS = "/buckets/"
IMAGE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""What a key may end with, in any case. A key with no suffix is taken too; the image reader decides."""

MOST = 2**63 - 1
"""Sizes and times beyond that are none: no database takes them."""

# MinIO files changes of tags and locks under ObjectCreated as well; only these bring new bytes.
_CREATED = frozenset({"Put", "Post", "Copy", "CompleteMultipartUpload"})


class EventError(Exception):
    """A notification that is not of the shape its sender is known for; sending it again changes nothing."""

    permanent = True


def from_seaweedfs(body: Mapping[str, Any]) -> list[Upload]:
    """The upload that a SeaweedFS filer webhook tells of: none for directories, deletes, parts and changes of tags alone.

    `sequencer` is the time of the newest chunk or of the entry, whichever is later, as 16 hexadecimal digits of nanoseconds:
    it orders uploads to one key, those of the same bytes as well. Raises EventError.
    """
    try:
        kind, path, message = str(body["event_type"]), str(body["key"]), body["message"]
        new, old = message.get("new_entry"), message.get("old_entry")
        if kind not in ("create", "update", "rename") or not new or new.get("is_directory") or "/.uploads/" in path:
            return []
        if kind == "rename":
            path = f"{message['new_parent_path']}/{new['name']}"
        elif old and _chunks(old) and _chunks(old) == _chunks(new):
            return []
        attributes, extended = new.get("attributes") or {}, new.get("extended") or {}
        if "Seaweed-X-Amz-Delete-Marker" in extended:
            return []
        if not path.startswith(BUCKETS):
            return []
        bucket, _, key = path.removeprefix(BUCKETS).partition("/")
        version_id = _text(extended.get("Seaweed-X-Amz-Version-Id"))
        if version_id and key.endswith(f".versions/v_{version_id}"):
            key = key.removesuffix(f".versions/v_{version_id}")
        etag = _text(extended.get("Seaweed-X-Amz-ETag")).strip('"') or base64.b64decode(attributes.get("md5") or "").hex()
        times = [int(chunk["modified_ts_ns"]) for chunk in new.get("chunks") or ()]
        moment = _number(max([*times, int(attributes.get("mtime") or 0) * 1_000_000_000]))
        size = _number(attributes.get("file_size"))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, binascii.Error) as error:
        raise EventError("This is no SeaweedFS filer notification: event_type, key or message is missing or malformed.") from error
    if not key:
        return []
    version_id = "" if version_id == "null" else version_id
    return [Upload(bucket, key, version_id, etag, f"{moment:016x}", size, origin="seaweedfs", modified=moment / 1e9)]


def _chunks(entry: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """What tells chunks of one write from those of another: the file id, and where it lies in the object."""
    return [(tuple(sorted((chunk.get("fid") or {}).items())), chunk.get("offset", 0)) for chunk in entry.get("chunks") or ()]


def _text(encoded: str | None) -> str:
    """An extended attribute: base64 of UTF-8."""
    return base64.b64decode(encoded).decode() if encoded else ""


def from_queue(text: str | bytes) -> list[Upload]:
    """The uploads in a message of a queue (SQS), whichever way S3 put it there. Raises EventError."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EventError("The message is not JSON.") from error
    return from_s3(body)


def from_s3(body: Any) -> list[Upload]:
    """The uploads in a message of S3: its own records, those inside an SNS notification, or an event of EventBridge.

    `s3:TestEvent`, what SNS says of its subscriptions, and everything that is no creation give none. Raises EventError.
    """
    if isinstance(body, Mapping):
        if isinstance(body.get("Type"), str) and "TopicArn" in body:
            return from_queue(str(body.get("Message"))) if body["Type"] == "Notification" else []
        if "detail-type" in body:
            return _from_eventbridge(body)
    return from_s3_records(body)


def _from_eventbridge(body: Mapping[str, Any]) -> list[Upload]:
    if body.get("source") != "aws.s3" or body["detail-type"] != "Object Created":
        return []
    try:
        about = body["detail"]["object"]
        return [_upload(body["detail"]["bucket"]["name"], str(about["key"]), about, "sqs", str(body.get("time", "")))]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise EventError("An EventBridge event of S3 is malformed: bucket name or object key is missing.") from error


def from_s3_records(body: Any) -> list[Upload]:
    """The uploads in an S3 event message, of AWS (as found in SQS) or MinIO; `s3:TestEvent` and everything that is no
    creation give none. Raises EventError."""
    if not isinstance(body, Mapping):
        raise EventError("This is no S3 event message: a JSON object was expected.")
    if body.get("Event") == "s3:TestEvent":
        return []
    records = body.get("Records")
    if not isinstance(records, list):
        raise EventError("This is no S3 event message: it has no list of Records.")
    return [upload for record in records for upload in _from_record(record)]


def _from_record(record: Any) -> list[Upload]:
    try:
        event = str(record["eventName"]).removeprefix("s3:")
        kind, _, how = event.partition(":")
        if kind != "ObjectCreated" or how not in _CREATED:
            return []
        about = record["s3"]["object"]
        key = unquote_plus(str(about["key"]), errors="strict")
        origin = "minio" if str(record.get("eventSource", "")).startswith("minio") else "sqs"
        return [_upload(record["s3"]["bucket"]["name"], key, about, origin, str(record.get("eventTime", "")))]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise EventError("An S3 event record is malformed: eventName, bucket name or object key is missing or cannot be read.") from error


def _upload(bucket: Any, key: str, about: Mapping[str, Any], origin: str, time: str) -> Upload:
    """What S3 says of an object, in either shape: `eTag` and `versionId` in records, `etag` and `version-id` in EventBridge."""
    version_id = str(about.get("versionId") or about.get("version-id") or "")
    return Upload(
        bucket=str(bucket),
        key=key,
        version_id="" if version_id == "null" else version_id,
        etag=str(about.get("eTag") or about.get("etag") or "").strip('"'),
        sequencer=str(about.get("sequencer") or ""),
        size=_number(about.get("size")),
        origin=origin,
        modified=_seconds(time),
    )


def _number(said: Any) -> int:
    """A size or a time as a number that can be stored. Raises ValueError, TypeError, OverflowError."""
    number = int(said or 0)
    if not 0 <= number <= MOST:
        raise ValueError
    return number


def _seconds(iso: str) -> float:
    """Seconds since the epoch of a time such as 2026-01-31T09:00:00.000Z; 0 if it is none."""
    try:
        return datetime.fromisoformat(iso.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
