"""Pictures for pages: small clean copies, decoded by the image reader and written anew, never the bytes somebody sent."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock, Semaphore
from typing import Annotated, Literal

from pydantic import BeforeValidator

from pipeline import images, inboxes
from pipeline.database import FaceRow, JobRow
from pipeline.extraction import crop
from pipeline.images import Limits
from pipeline.jobs import Box, Pixels
from webhooks.context import Context
from webhooks.problems import Problem

Side = Annotated[Literal[128, 320, 1280], BeforeValidator(int)]
"""The longer side in pixels: a row of a list, a card, a whole page."""
FACE_PX = 128
CACHE_BYTES = 48_000_000
PATIENCE_S = 5.0
"""So long a request waits for others to be drawn. All would wait, the health check's too, where the store hangs while it is asked."""


class _Shelf:
    """The pictures shown last, up to a number of bytes. What a job's picture shows never changes, so nothing expires."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._lock = Lock()
        self._decoding = Semaphore(2)  # a page of thumbnails must not decode fifty pictures at once

    def get(self, name: tuple[str, ...], make: Callable[[], bytes]) -> bytes:
        if (known := self._look(name)) is not None:
            return known
        if not self._decoding.acquire(timeout=PATIENCE_S):
            raise Problem(503, "Too many pictures are being drawn, or the store is slow.", {"Retry-After": "5"})
        try:
            if (known := self._look(name)) is not None:
                return known
            data = make()
        finally:
            self._decoding.release()
        with self._lock:
            self._bytes += len(data) - len(self._kept.pop(name, b""))  # two may have made the same one at once
            self._kept[name] = data
            while self._bytes > self._most and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data

    def _look(self, name: tuple[str, ...]) -> bytes | None:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)


_shelf = _Shelf(CACHE_BYTES)


def source(context: Context, job: JobRow, side: Side) -> bytes:
    """The image that was uploaded, as a JPEG of at most `side` pixels. Raises SourceGone, ImageRefused, StorageError."""
    return _shelf.get((job.id, "source", str(side)), lambda: images.thumbnail(_decoded(context, job), side))


def annotated(context: Context, job: JobRow, side: Side) -> bytes:
    """The annotated image, as a JPEG of at most `side` pixels. Raises Problem while there is none, StorageError."""

    def make() -> bytes:
        data = annotated_png(context, job)
        settings = context.settings
        whole = Limits(len(data), settings.max_image_pixels, settings.max_image_side)
        return images.thumbnail(images.read(data, whole).pixels, side)

    return _shelf.get((job.id, "annotated", str(side)), make)


def face(context: Context, job: JobRow, row: FaceRow) -> bytes:
    """One face, cut from the image with a margin of 15 %, as a JPEG of 128 pixels a side."""

    def make() -> bytes:
        cut = crop(_decoded(context, job), Box(row.x, row.y, row.w, row.h), size=FACE_PX, margin=0.15)
        return images.thumbnail(cut, FACE_PX)

    return _shelf.get((job.id, "face", str(row.index)), make)


def annotated_png(context: Context, job: JobRow) -> bytes:
    """The annotated image itself. Raises Problem while there is none, StorageError."""
    return result(context, job, job.annotated_key, 4 * context.settings.max_image_pixels)


def result(context: Context, job: JobRow, key: str | None, max_bytes: int) -> bytes:
    """An object of a job's results. Raises Problem while there is none, StorageError."""
    if key is None:
        raise Problem(404, "The job has no result, or none yet.")
    place = inboxes.effective(context.settings, context.database, job.inbox)
    return context.storage.fetch(place.results_bucket, key, max_bytes=max_bytes)


def _decoded(context: Context, job: JobRow) -> Pixels:
    # Only what a worker has read without dying of it: this process must not be the first to decode hostile bytes.
    if job.sha256 is None:
        raise Problem(404, "The image has not been read yet, or cannot be.")
    settings = context.settings
    data = context.storage.fetch(job.bucket, job.key, version_id=job.version_id, etag=job.etag, max_bytes=settings.max_image_bytes)
    return images.read(data, Limits.of(settings)).pixels
