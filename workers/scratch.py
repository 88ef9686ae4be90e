"""Working copies of sources between the stages of one machine. Anything may vanish; it is fetched again.

Whoever keeps something sees to it that the folder does not grow beyond its room: stages may run where no upkeep comes.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from pipeline import faults
from pipeline.jobs import Pixels, Upload
from pipeline.settings import Settings
from pipeline.storage import storage

ABANDONED_S = 3600.0
SOURCES_BYTES = 1_000_000_000
"""Room for copies of sources; beyond it they are fetched a second time."""
COUNTED_S = 2.0
"""For how long a folder that was counted is not counted again: what other processes left or took away meanwhile is not seen."""
PIXELS = "pixels"
"""The folder beside the scratch space where decoded pictures lie, each with the hash of its file behind it."""


def source(settings: Settings, job_id: str, upload: Upload) -> bytes:
    """The bytes of the job's upload: the copy kept here, or fetched by version or ETag and kept, as long as there is room.

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
    _keep(path, SOURCES_BYTES, data)  # without room it is fetched a second time
    return data


def keep_pixels(settings: Settings, job_id: str, sha256: str, pixels: Pixels) -> None:
    """Leave what was decoded for the stage that draws, as long as all that is left so has room in `scratch_pixels_bytes`."""
    _keep(_pixels(settings, job_id), settings.scratch_pixels_bytes, pixels, sha256)  # without room it is decoded a second time


def pixels(settings: Settings, job_id: str, sha256: str | None) -> Pixels | None:
    """What was decoded of the file of that hash, (h, w, 3) uint8 RGB, not to be written to; None: it is not here."""
    path, expected = _pixels(settings, job_id), (sha256 or "").encode()
    try:
        with path.open("rb") as file:
            file.seek(-len(expected), os.SEEK_END)
            if not expected or file.read() != expected:
                return None
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return np.asarray(found) if found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3 else None


def drop(settings: Settings, job_id: str) -> None:
    """The job is over: its copies go."""
    (settings.scratch_dir / job_id).unlink(missing_ok=True)
    _pixels(settings, job_id).unlink(missing_ok=True)


def tidy(settings: Settings, *, older_s: float = ABANDONED_S) -> int:
    """Remove copies that nobody has touched for `older_s` seconds; returns how many."""
    return sum(_tidied(folder, older_s)[0] for folder in (settings.scratch_dir, settings.scratch_dir.with_name(PIXELS)))


def _pixels(settings: Settings, job_id: str) -> Path:
    return settings.scratch_dir.with_name(PIXELS) / job_id


def _keep(path: Path, most: int, content: bytes | Pixels, sha256: str = "") -> None:
    """Write a file whole or not at all; not where its folder would then hold more than `most` bytes."""
    size = len(content) if isinstance(content, bytes) else content.nbytes
    half = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):  # nor where the disk is full
        path.parent.mkdir(parents=True, exist_ok=True)
        room = _room(path.parent)
        if room.held() + size > most:
            return
        try:
            with half.open("wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    np.save(file, content, allow_pickle=False)
                    file.write(sha256.encode())
                written = file.tell()
            half.replace(path)
            room.add(written)
        except OSError:
            half.unlink(missing_ok=True)


class _Room:
    """What lies in a folder: counted now and then, and what this process has left there since."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bytes, self._until = 0, 0.0

    def held(self) -> int:
        """How many bytes lie there."""
        if time.monotonic() > self._until:
            _, self._bytes = _tidied(self._folder, ABANDONED_S)
            self._until = time.monotonic() + COUNTED_S
        return self._bytes

    def add(self, size: int) -> None:
        """So many more, from this process."""
        self._bytes += size


@cache
def _room(folder: Path) -> _Room:
    return _Room(folder)


def _tidied(folder: Path, older_s: float) -> tuple[int, int]:
    """Remove what nobody has touched for so long: how many files went, and how many bytes stay."""
    went = stay = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                found = entry.stat()
                if time.time() - found.st_mtime > older_s:
                    Path(entry).unlink()
                    went += 1
                else:
                    stay += found.st_size
    return went, stay
