"""What comes in over HTTP, made into jobs: one insert, one wake-up."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from werkzeug.datastructures import FileStorage

from pipeline import events, faults, inboxes, ledger
from pipeline.inboxes import Inbox, InboxError
from pipeline.jobs import Queue, Stage, Status, Upload
from pipeline.ledger import Accepted
from webhooks.access import principal
from webhooks.acting import rouse
from webhooks.context import Context
from webhooks.problems import Problem

OURS = r"(predict|submit|dashboard)/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/[^/]+"


@dataclass(frozen=True)
class Received:
    """A file as it was sent: the last part of its name, made safe for an object key, and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Placed:
    """An object that lies in an inbox: the upload, and the inbox's name."""

    upload: Upload
    inbox: str


def take(context: Context, upload: Upload, queue: Queue, inbox: str = inboxes.DEFAULT) -> Accepted:
    """Make the one job of an upload that came through an inbox, or find it, and wake whoever is to work on it."""
    accepted = ledger.accept(context.database, upload, queue=queue, inbox=inbox)
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
    _must_fit(context, file, "The file")
    return Received(safe_name(file.filename or ""), file.stream.read())


def must_be_takable(context: Context, files: Sequence[FileStorage], folder: str, inbox: Inbox) -> None:
    """Raise Problem for the first of several files that `receive` or `store` would refuse, while none of them is stored yet.

    Otherwise those before it would have their jobs, and be judged twice when the form is sent again.
    """
    among = inboxes.directory(context.settings, context.database)
    for file in files:
        name = safe_name(file.filename or "")
        _must_fit(context, file, f"The file {name}" if len(files) > 1 else "The file")
        if (why := among.why_not(Upload(inbox.bucket, f"{inbox.prefix}{folder}/{name}"))) is not None:
            raise Problem(422, f"No job is made of {name}: {why}.")


def _must_fit(context: Context, file: FileStorage, called: str) -> None:
    most = context.settings.max_image_bytes
    file.stream.seek(0, os.SEEK_END)
    size = file.stream.tell()
    file.stream.seek(0)
    if size > most:
        raise Problem(413, f"{called} has more than the {most:,} bytes that are accepted.")
    if not size:
        raise Problem(422, f"{called} is empty.")


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


def is_ours(context: Context, key: str, prefix: str | None = None) -> bool:
    """Whether an object is one that `store` has put there, so that the request which did is about to make its job.

    `prefix`: of the inbox it lies in; None: that of the settings.
    """
    return re.fullmatch(re.escape(context.settings.inbox_prefix if prefix is None else prefix) + OURS, key) is not None


def inbox_named(context: Context, name: str | None) -> Inbox:
    """The inbox that whoever asks wants their images in; without a name the settings', or the only one they are bound to.

    Raises Problem 404 for one that is not theirs, 422 if they must say which, or if it takes nothing.
    """
    bound = principal().inboxes
    if not name:
        name = next(iter(bound)) if len(bound) == 1 else inboxes.DEFAULT
        if bound and name not in bound:
            raise Problem(422, f"Say which inbox: {', '.join(sorted(bound))}.")
    if bound and name not in bound:
        raise Problem(404, f"There is no inbox {name}.")
    try:
        inbox = inboxes.get(context.settings, context.database, name)
    except InboxError as error:
        raise Problem(404, str(error)) from error
    if not inbox.enabled:
        raise Problem(422, f"The inbox {name} is turned off.")
    return inbox


def store(context: Context, received: Received, folder: str, *, origin: str, inbox: Inbox) -> Placed:
    """Put a file into an inbox, as `{its prefix}{folder}/{name}`. `folder`: as OURS has it."""
    key = f"{inbox.prefix}{folder}/{received.name}"
    context.storage.put(inbox.bucket, key, received.data, "application/octet-stream")
    return found(context, key, origin=origin, inbox=inbox)


def found(context: Context, key: str, *, origin: str, inbox: Inbox) -> Placed:
    """An object that lies in an inbox's bucket already. Raises SourceGone if it does not, Problem if no job is made of it."""
    directory = inboxes.directory(context.settings, context.database)
    within = directory.of(Upload(inbox.bucket, key))
    if principal().inboxes and (within is None or within.name != inbox.name):
        raise Problem(404, f"There is no {key} in the inbox {inbox.name}.")  # whatever lies there: it is somebody else's
    stored = context.storage.head(inbox.bucket, key)
    upload = Upload(inbox.bucket, key, stored.version_id, stored.etag, size=stored.size, origin=origin, modified=stored.modified)
    if within is None or (why := directory.why_not(upload)) is not None:
        raise Problem(422, f"No job is made of {key}: {why if within else 'it is in no inbox'}.")
    return Placed(upload, within.name)
