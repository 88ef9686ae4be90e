"""What comes in over HTTP, made into jobs: one insert, one wake-up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from werkzeug.datastructures import FileStorage

from pipeline import events, faults, ledger
from pipeline.jobs import Queue, Stage, Status, Upload
from pipeline.ledger import Accepted
from webhooks.acting import rouse
from webhooks.context import Context
from webhooks.problems import Problem

OURS = r"(predict|submit|dashboard)/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/[^/]+"


@dataclass(frozen=True)
class Received:
    """A file as it was sent: the last part of its name, made safe for an object key, and its bytes."""

    name: str
    data: bytes


def take(context: Context, upload: Upload, queue: Queue) -> Accepted:
    """Make the one job of an upload, or find it, and wake whoever is to work on it."""
    accepted = ledger.accept(context.database, upload, queue=queue)
    faults.point("accepted", upload.key)
    if accepted.created:
        rouse(context, accepted.job_id, Stage.EXTRACT, queue)
    elif queue is Queue.INTERACTIVE:  # its event was faster and put it behind the bulk jobs: it has changed queues now
        standing = ledger.position(context.database, accepted.job_id)
        if standing is not None and standing[0] is Status.QUEUED:
            rouse(context, accepted.job_id, standing[1], queue)
    return accepted


def receive(context: Context, file: FileStorage | None) -> Received:
    """The file of a multipart form. Raises Problem if there is none, or too much of it."""
    if file is None or not hasattr(file, "stream"):
        raise Problem(422, "The form has no file: send the image as multipart/form-data in the field `file`.")
    most = context.settings.max_image_bytes
    data = file.stream.read(most + 1)
    if len(data) > most:
        raise Problem(413, f"The file has more than the {most:,} bytes that are accepted.")
    if not data:
        raise Problem(422, "The file is empty.")
    return Received(safe_name(file.filename or ""), data)


def safe_name(name: str) -> str:
    """The last part of a file name, good as the last part of a key: no slashes, control or odd characters, 100 at most.

    A suffix that is no image's is defused, since the name proves nothing: what the bytes are decides.
    """
    last = re.split(r"[/\\]", name)[-1]
    last = re.sub(r"[^\w.()+@ -]", "_", last).strip(" .")[-100:] or "image"
    path = PurePosixPath(last)
    if path.suffix and path.suffix.lower() not in events.IMAGE_SUFFIXES:
        return last.replace(".", "_")
    return last


def is_ours(context: Context, key: str) -> bool:
    """Whether an object is one that `store` has put there, so that the request which did is about to make its job."""
    return re.fullmatch(re.escape(context.settings.inbox_prefix) + OURS, key) is not None


def store(context: Context, received: Received, folder: str, *, origin: str) -> Upload:
    """Put a file into the inbox, as `{inbox prefix}{folder}/{name}`, and return it as an upload. `folder`: as OURS has it."""
    settings, storage = context.settings, context.storage
    key = f"{settings.inbox_prefix}{folder}/{received.name}"
    storage.put(settings.inbox_bucket, key, received.data, "application/octet-stream")
    return found(context, key, origin=origin)


def found(context: Context, key: str, *, origin: str) -> Upload:
    """An object that lies in the inbox already, as an upload. Raises SourceGone if it does not."""
    bucket = context.settings.inbox_bucket
    stored = context.storage.head(bucket, key)
    upload = Upload(bucket, key, stored.version_id, stored.etag, size=stored.size, origin=origin, modified=stored.modified)
    if why := events.admissible(upload, context.settings):
        raise Problem(422, f"No job is made of {key}: {why}.")
    return upload
