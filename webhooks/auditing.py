"""No deed without a note: what changed something by HTTP and left none in its own transaction is noted right after."""

from __future__ import annotations

import logging

from flask import Flask, Response, g, request
from sqlalchemy.exc import SQLAlchemyError

from pipeline import audit
from webhooks import roles
from webhooks.access import SAFE, principal
from webhooks.context import here

ACTIONS = {
    "jobs.create": "job.submit",
    "predict.predict": "job.submit",
    "dashboard.upload": "job.submit",
    "jobs.retry": "job.retry",
    "dashboard.retry": "job.retry",
    "jobs.cancel": "job.cancel",
    "dashboard.cancel": "job.cancel",
    "queues.pause": "queue.pause",
    "queues.resume": "queue.resume",
    "dashboard.log_out": "session.end",
}
"""What a route does, where its name does not say it."""
log = logging.getLogger(__name__)


def install(app: Flask) -> None:
    """Watch every request of the application."""
    app.before_request(_begin)
    app.after_request(_end)


def _begin() -> None:
    g.noted = audit.noted.get()


def _end(response: Response) -> Response:
    endpoint = request.endpoint
    if endpoint is None or request.method in SAFE or response.status_code >= 400 or endpoint in roles.OPEN | roles.OWN_TOKEN:
        return response
    if "noted" not in g or audit.noted.get() != g.noted:
        return response
    note(ACTIONS.get(endpoint, endpoint), _subject(response))
    return response


def note(action: str, subject: str) -> None:
    """Note what whoever asks has just done; where that fails the log says so."""
    try:
        with here().database.write() as session:
            audit.note(session, principal().actor, action, subject)
    except SQLAlchemyError as error:  # the deed is done, and its answer must not say otherwise
        log.error("%s of %s by %s could not be noted: %s", action, subject, principal().actor, error)


def _subject(response: Response) -> str:
    if request.view_args:
        return "/".join(str(value) for value in request.view_args.values())
    where = response.headers.get("Content-Location") or response.headers.get("Location", "")
    return where.rstrip("/").rpartition("/")[2] or "-"
