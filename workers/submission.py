"""Pictures put into the inbox as anybody would, and watched until they are judged."""

from __future__ import annotations

import mimetypes
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import inquiry
from pipeline.database import Database, JobRow
from pipeline.jobs import Status
from pipeline.settings import Settings
from pipeline.storage import Storage

POLL_S = 0.1


@dataclass(frozen=True)
class Sent:
    """A file that lies in the inbox now. `etag` and `version_id` as the store gave them."""

    path: Path
    key: str
    etag: str
    version_id: str
    size: int
    modified: float


def new_folder(settings: Settings, name: str) -> str:
    """The beginning of object keys that nobody has used yet, `{inbox prefix}{name}/{time}-{random}/`."""
    return f"{settings.inbox_prefix}{name}/{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}/"


def keys(paths: Sequence[Path], folder: str) -> list[str]:
    """One key for each path: the file's own name in `folder`, numbered where two files are called the same."""
    taken: set[str] = set()
    found = []
    for path in paths:
        key, number = folder + path.name, 1
        while key in taken:
            number += 1
            key = f"{folder}{path.stem}-{number}{path.suffix}"
        taken.add(key)
        found.append(key)
    return found


def send(storage: Storage, settings: Settings, paths: Sequence[Path], folder: str) -> Iterator[Sent]:
    """Upload files into `folder` of the inbox, one by one. Raises StorageError, and OSError for a file that cannot be read."""
    for path, key in zip(paths, keys(paths, folder), strict=True):
        data = path.read_bytes()
        storage.put(settings.inbox_bucket, key, data, mimetypes.guess_type(path.name)[0] or "application/octet-stream")
        stored = storage.head(settings.inbox_bucket, key)
        yield Sent(path, key, stored.etag, stored.version_id, len(data), stored.modified)


def jobs_in(database: Database, folder: str) -> dict[str, JobRow]:
    """The newest job of each key that begins with `folder`."""
    found: dict[str, JobRow] = {}
    after: str | None = None
    while True:
        rows, after = inquiry.page(database, prefix=folder, after=after, limit=inquiry.MAX_PAGE)
        for row in rows:
            found.setdefault(row.key, row)
        if after is None:
            return found


def follow(
    look: Callable[[], dict[str, JobRow]], keys: Sequence[str], *, timeout_s: float | None = None, poll_s: float = POLL_S
) -> Iterator[dict[str, JobRow]]:
    """The jobs of `keys` as they stand, again and again, until all are at their end or `timeout_s` seconds have passed.

    `look` gives jobs by key, such as `jobs_in`; a key whose job does not exist yet is missing from what is yielded.
    """
    until = None if timeout_s is None else time.monotonic() + timeout_s
    wanted = set(keys)
    while True:
        standing = {key: job for key, job in look().items() if key in wanted}
        yield standing
        if len(standing) == len(wanted) and all(Status(job.status).terminal for job in standing.values()):
            return
        if until is not None and time.monotonic() >= until:
            return
        time.sleep(poll_s)
