"""Upload notifications of object stores, as they post them: `POST /events/seaweedfs`, `/events/minio` and `/events/s3`.

Whoever posts must carry the bearer token of the setting `events_token`; nothing unsigned is taken. What a notification
describes and we do not want (directories, our own output, other buckets) is accepted and forgotten, so that no sender
repeats it. A database that is away is 503, so that senders which do repeat will.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from flask import Blueprint, request
from werkzeug.exceptions import BadRequest

from pipeline import events, inboxes
from pipeline.events import EventError
from pipeline.inboxes import Directory
from pipeline.jobs import Upload
from pipeline.ledger import LedgerError
from webhooks.accepting import is_ours, take
from webhooks.access import bearer
from webhooks.context import here
from webhooks.problems import Problem
from webhooks.sessions import same

log = logging.getLogger(__name__)

MAX_BODY = 4_000_000

blueprint = Blueprint("inbound", __name__, url_prefix="/events")


@blueprint.before_request
def _authenticate() -> None:
    token = here().settings.events_token
    if token is None:
        raise Problem(401, "Notifications are not taken while UNMASK_EVENTS_TOKEN is not set.", {"WWW-Authenticate": "Bearer"})
    if not same(bearer(), token.get_secret_value()):
        raise Problem(401, "The notification does not carry the right bearer token.", {"WWW-Authenticate": "Bearer"})


@blueprint.post("/seaweedfs")
def seaweedfs() -> tuple[dict[str, Any], int]:
    """A SeaweedFS filer webhook."""
    return _accept(events.from_seaweedfs)


@blueprint.post("/s3")
def s3() -> tuple[dict[str, Any], int]:
    """S3's own notification, posted by whoever got it: bare, inside an SNS notification, or as an event of EventBridge."""
    return _accept(events.from_s3)


@blueprint.post("/minio")
def minio() -> tuple[dict[str, Any], int]:
    """A MinIO webhook target, which posts S3 event records."""
    return _accept(events.from_s3_records)


def _accept(read: Callable[[Mapping[str, Any]], list[Upload]]) -> tuple[dict[str, Any], int]:
    request.max_content_length = MAX_BODY
    try:
        body = request.get_json(force=True)
        uploads = read(body)
    except (BadRequest, EventError) as error:
        raise Problem(400, str(error) if isinstance(error, EventError) else "The body is not JSON.") from error
    context = here()
    jobs = []
    wrong: LedgerError | None = None
    among = inboxes.directory(context.settings, context.database) if uploads else Directory(())
    for upload in uploads:
        why, inbox = among.why_not(upload), among.of(upload)
        if why is not None or inbox is None:
            log.debug("not taken: %s/%s: %s", upload.bucket, upload.key, why)
            continue
        if is_ours(context, upload.key, inbox.prefix):  # and known better by the request that stores it; the sweep is the backstop
            continue
        try:
            jobs.append(take(context, upload, inbox.queue, inbox.name).job_id)
        except LedgerError as error:
            wrong = error
    if wrong is not None:  # said when those told of beside it have their jobs
        raise wrong
    return {"jobs": jobs}, 200
