"""Working copies of sources between the stages of one machine. Anything may vanish; it is fetched again."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline import faults
from pipeline.jobs import Pixels, Upload
from pipeline.settings import Settings
from pipeline.storage import storage

ABANDONED_S = 3600.0
PIXELS = "pixels"
"""The folder beside the scratch space where decoded pictures lie."""


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


def keep_pixels(settings: Settings, job_id: str, sha256: str, pixels: Pixels) -> None:
    """Leave what was decoded for the stage that draws, as long as all that is left so has room in `scratch_pixels_bytes`."""
    folder = settings.scratch_dir.with_name(PIXELS)
    half = folder / f"{job_id}.{os.getpid()}"
    with suppress(OSError):  # without room it is decoded a second time
        folder.mkdir(parents=True, exist_ok=True)
        if sum(_size(path) for path in _entries(folder)) + pixels.nbytes > settings.scratch_pixels_bytes:
            return
        try:
            with half.open("wb") as file:
                np.save(file, pixels, allow_pickle=False)
            half.replace(_pixels(settings, job_id, sha256))
        except OSError:
            half.unlink(missing_ok=True)


def pixels(settings: Settings, job_id: str, sha256: str | None) -> Pixels | None:
    """What was decoded of the file of that hash, (h, w, 3) uint8 RGB, not to be written to; None: it is not here."""
    try:
        found = np.load(_pixels(settings, job_id, sha256 or ""), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return np.asarray(found) if found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3 else None


def drop(settings: Settings, job_id: str) -> None:
    """The job is over: its copies go."""
    (settings.scratch_dir / job_id).unlink(missing_ok=True)
    for path in settings.scratch_dir.with_name(PIXELS).glob(f"{job_id}.*"):
        path.unlink(missing_ok=True)


def _pixels(settings: Settings, job_id: str, sha256: str) -> Path:
    return settings.scratch_dir.with_name(PIXELS) / f"{job_id}.{sha256}"


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def tidy(settings: Settings, *, older_s: float = ABANDONED_S) -> int:
    """Remove copies that nobody has touched for `older_s` seconds; returns how many."""
    removed = 0
    for path in _entries(settings.scratch_dir) + _entries(settings.scratch_dir.with_name(PIXELS)):
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
