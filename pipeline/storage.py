"""S3 and everything that speaks its protocol: fetch, put, list, delete. One client per process, made after a fork."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError, ReadTimeoutError

from pipeline import faults
from pipeline.settings import Settings
from pipeline.shortcut import Shortcut

_GONE = frozenset({"NoSuchKey", "NoSuchVersion", "PreconditionFailed", "MethodNotAllowed", "404", "412", "405"})
# Asking again changes nothing. Of the refusals (403) only this one: a key or a clock may be about to be put right.
_HOPELESS = frozenset(
    {"AccessDenied", "NoSuchBucket", "InvalidBucketName", "KeyTooLongError", "InvalidArgument", "InvalidURI", "EntityTooLarge"}
)


class StorageError(Exception):
    """The object store did not do what it was asked. `permanent`: asking again will not help."""

    def __init__(self, sentence: str, *, permanent: bool = False) -> None:
        super().__init__(sentence)
        self.permanent = permanent


class SourceGone(StorageError):
    """The object was deleted or replaced since we heard of it."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, permanent=True)


class ObjectTooLarge(StorageError):
    """The object has more bytes than were asked for at most."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, permanent=True)


@dataclass(frozen=True)
class StoredObject:
    """An object as the store describes it: `etag` without quotes, `version_id` empty where unversioned or not said,
    `modified` in seconds since the epoch (to the second only), `newest` unless it was overwritten or deleted since."""

    key: str
    size: int
    etag: str
    version_id: str
    modified: float
    newest: bool = True


def _etag(quoted: str | None) -> str:
    return (quoted or "").strip('"')


def _version(said: str | None) -> str:
    return "" if said in (None, "null") else str(said)


class Storage:
    """One client for one store. Safe to share between threads, not across a fork."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        endpoint = settings.s3_endpoint
        for chatty in ("botocore", "boto3"):
            logging.getLogger(chatty).setLevel(logging.INFO)  # below it they write signed requests into the log, whole
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=settings.s3_access_key.get_secret_value() if settings.s3_access_key else None,
            aws_secret_access_key=settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else None,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path" if endpoint else "auto"},
                connect_timeout=3,
                read_timeout=10,
                retries={"total_max_attempts": 3, "mode": "standard"},
                max_pool_connections=32,
                # Other makers' servers know few of the newer checksums; AWS is content without them.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

        keys = boto3.Session().get_credentials() if settings.s3_access_key is None else _given(settings)
        self._shortcut = Shortcut(endpoint, settings.s3_region, keys) if endpoint and keys else None

    def fetch(self, bucket: str, key: str, *, version_id: str = "", etag: str = "", max_bytes: int) -> bytes:
        """The bytes of one version of an object: by `version_id`, else only if its ETag is still `etag`, else the newest.

        Raises SourceGone if that version is no longer there, ObjectTooLarge before reading more than `max_bytes`, and
        StorageError for anything else.
        """
        if self._shortcut is not None:
            found = self._shortcut.get(bucket, key, version_id=version_id, etag=etag, max_bytes=max_bytes)
            if found is not None:
                return found
        which = {"VersionId": version_id} if version_id else {"IfMatch": f'"{etag}"'} if etag else {}
        with _translated(f"{bucket}/{key}"):
            answer = self.client.get_object(Bucket=bucket, Key=key, **which)
            with answer["Body"] as body:
                if answer["ContentLength"] > max_bytes:
                    raise ObjectTooLarge(f"{bucket}/{key} has {answer['ContentLength']:,} bytes; at most {max_bytes:,} are accepted.")
                data: bytes = body.read()
        return data

    def put(self, bucket: str, key: str, data: bytes, content_type: str) -> None:
        """Write one object, replacing what was there. Raises StorageError."""
        faults.point("put", key)
        if self._shortcut is None or not self._shortcut.put(bucket, key, data, content_type):
            with _translated(f"{bucket}/{key}"):
                self.client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type)
        faults.point("put.done", key)

    def upload(self, bucket: str, key: str, path: Path, told: Callable[[int], None] | None = None) -> None:
        """Write one object from a file of any size, in parts, without holding it in memory. Raises StorageError.

        `told`: called with the number of bytes of each piece that goes out, by several threads at once; it must not raise.
        """
        with _translated(f"{bucket}/{key}"):
            self.client.upload_file(str(path), bucket, key, Callback=told)

    def download(self, bucket: str, key: str, path: Path) -> None:
        """Write one object into a file, in parts. Raises SourceGone or StorageError; a file that is begun may then remain."""
        with _translated(f"{bucket}/{key}"):
            self.client.download_file(bucket, key, str(path))

    def delete(self, bucket: str, key: str) -> None:
        """Delete one object; that it was not there is no error. Raises StorageError."""
        with _translated(f"{bucket}/{key}"):
            self.client.delete_object(Bucket=bucket, Key=key)

    def listing(self, bucket: str, prefix: str = "", start_after: str = "") -> Iterator[StoredObject]:
        """All objects under `prefix`, after the key `start_after`, in the store's order; one page of 1,000 is held at a time."""
        page: dict[str, Any] = {"StartAfter": start_after} if start_after else {}
        while True:
            with _translated(bucket):
                answer = self.client.list_objects_v2(Bucket=bucket, Prefix=prefix, **page)
            for one in answer.get("Contents", ()):
                yield StoredObject(one["Key"], one["Size"], _etag(one.get("ETag")), "", one["LastModified"].timestamp())
            if not answer.get("IsTruncated"):
                return
            page = {"ContinuationToken": answer["NextContinuationToken"]}

    def versions(self, bucket: str, prefix: str = "", start_after: str = "") -> Iterator[StoredObject]:
        """All versions of all objects under `prefix`, those of one key together and the newest first, else like `listing`.

        That is what it is where the bucket keeps no versions, or where these credentials may not ask for them.
        """
        try:
            with _translated(bucket):
                kept = "Status" in self.client.get_bucket_versioning(Bucket=bucket)
                page: dict[str, Any] = {"KeyMarker": start_after} if start_after else {}
                answer = self.client.list_object_versions(Bucket=bucket, Prefix=prefix, **page) if kept else None
        except StorageError as error:
            if not isinstance(error.__cause__, ClientError):
                raise
            answer = None
        if answer is None:
            yield from self.listing(bucket, prefix, start_after)
            return
        while True:
            for one in answer.get("Versions", ()):
                if one["Key"] == start_after:  # some makers' servers begin with the rest of its versions
                    continue
                version_id, modified = _version(one.get("VersionId")), one["LastModified"].timestamp()
                yield StoredObject(one["Key"], one["Size"], _etag(one.get("ETag")), version_id, modified, one["IsLatest"])
            if not answer.get("IsTruncated"):
                return
            page = {"KeyMarker": answer["NextKeyMarker"]}
            if after := answer.get("NextVersionIdMarker"):
                page["VersionIdMarker"] = after
            with _translated(bucket):
                answer = self.client.list_object_versions(Bucket=bucket, Prefix=prefix, **page)

    def head(self, bucket: str, key: str) -> StoredObject:
        """The newest version of one object. Raises SourceGone if there is none."""
        with _translated(f"{bucket}/{key}"):
            answer = self.client.head_object(Bucket=bucket, Key=key)
        modified = answer["LastModified"].timestamp()
        return StoredObject(key, answer["ContentLength"], _etag(answer.get("ETag")), _version(answer.get("VersionId")), modified)

    def ensure_buckets(self) -> list[str]:
        """Create the inbox, results and models buckets where missing; returns the names of those created."""
        chosen = self._settings
        wanted = dict.fromkeys((chosen.inbox_bucket, chosen.results_bucket, chosen.models_bucket))
        return [name for name in wanted if self.ensure_bucket(name)]

    def ensure_bucket(self, name: str) -> bool:
        """Create a bucket where it is missing; False: it was there. Raises StorageError."""
        try:
            self.client.head_bucket(Bucket=name)
        except ClientError as error:
            if _code(error) not in ("404", "NoSuchBucket"):
                raise _refusal(error, name) from error
        except BotoCoreError as error:
            raise _unreachable(error, name) from error
        else:
            return False
        region = self._settings.s3_region
        where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        try:
            self.client.create_bucket(Bucket=name, **where)
        except ClientError as error:
            if _code(error) in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                return False
            raise _refusal(error, name) from error
        except BotoCoreError as error:
            raise _unreachable(error, name) from error
        return True


def _given(settings: Settings) -> Credentials:
    key, secret = settings.s3_access_key, settings.s3_secret_key
    return Credentials(key.get_secret_value() if key else "", secret.get_secret_value() if secret else "")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _refusal(error: ClientError, what: str) -> StorageError:
    code = _code(error)
    if code in _GONE:
        return SourceGone(f"{what} was deleted or replaced before it could be read.")
    said = str(error.response.get("Error", {}).get("Message", "")).rstrip(".") or "no reason given"
    return StorageError(f"The object store refused {what}: {code}, {said}.", permanent=code in _HOPELESS)


def _unreachable(error: Exception, what: str) -> StorageError:
    return StorageError(f"The object store could not be reached for {what}: {str(error).rstrip('.')}.")


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise _refusal(error, what) from error
    except Boto3Error as error:  # a transfer in parts hides what went wrong
        if isinstance(error.__context__, ClientError):
            raise _refusal(error.__context__, what) from error
        raise _unreachable(error, what) from error
    except (BotoCoreError, HTTPClientError, ReadTimeoutError, IncompleteReadError, OSError) as error:
        raise _unreachable(error, what) from error


@cache
def storage(settings: Settings) -> Storage:
    """The process's one Storage for these settings. Call it after forking, never before."""
    return Storage(settings)
