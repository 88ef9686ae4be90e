"""Working copies of sources between the stages of one machine. Anything may vanish; it is fetched again."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from pipeline import faults
from pipeline.jobs import Upload
from pipeline.settings import Settings
from pipeline.storage import storage

ABANDONED_S = 3600.0


def source(settings: Settings, job_id: str, upload: Upload) -> bytes:
    """The bytes of the job's upload: the copy kept here, or fetched by version or ETag and kept.

    Raises SourceGone, ObjectTooLarge or StorageError.
    """
    path = settings.scratch_dir / job_id
    with suppress(FileNotFoundError):
        return path.read_bytes()
    faults.point("fetch", upload.key)
    data = storage(settings).fetch(
        upload.bucket, upload.key, version_id=upload.version_id, etag=upload.etag, max_bytes=settings.max_image_bytes
    )
    faults.point("fetched", upload.key)
    with suppress(OSError):  # a full disk costs a second download, not the job
        settings.scratch_dir.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}")
        try:
            half.write_bytes(data)
            half.replace(path)
        except OSError:
            half.unlink(missing_ok=True)
    return data


def drop(settings: Settings, job_id: str) -> None:
    """The job is over: its copy goes."""
    (settings.scratch_dir / job_id).unlink(missing_ok=True)


def tidy(settings: Settings, *, older_s: float = ABANDONED_S) -> int:
    """Remove copies that nobody has touched for `older_s` seconds; returns how many."""
    removed = 0
    for path in _entries(settings.scratch_dir):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > older_s:
                path.unlink()
                removed += 1
    return removed


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
