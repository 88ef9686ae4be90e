"""Errors as the caller sees them: RFC 9457 problem JSON with one sentence, or a small page for people.

Whatever goes wrong below ends here: a database that is away, or too little memory, is 503, never 500, and no traceback leaves
the house.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from flask import Flask, Response, json, render_template, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import DataError
from werkzeug.exceptions import HTTPException, SecurityError

from pipeline.access import AccessError
from pipeline.collections import CollectionError
from pipeline.database import AWAY
from pipeline.feedback import FeedbackError
from pipeline.gate import GateError
from pipeline.images import ImageRefused
from pipeline.inquiry import InquiryError
from pipeline.ledger import LedgerError
from pipeline.options import OptionsError
from pipeline.registry import ModelError
from pipeline.schedules import ScheduleError
from pipeline.shadow import ShadowError
from pipeline.storage import ObjectTooLarge, SourceGone, StorageError
from webhooks.endpoints import EndpointError
from webhooks.secretbox import SecretError

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_S = "5"
MACHINES = ("/v1/", "/predict", "/events/", "/healthz", "/readyz", "/metrics")
"""Paths that answer in JSON whoever asks."""


class ProblemBody(BaseModel):
    """A problem, as RFC 9457 has it."""

    model_config = ConfigDict(title="Problem")

    type: str = Field("about:blank", description="`about:blank`: the status says what kind it is")
    title: str = Field(description="The status in words", examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(description="One sentence about what went wrong", examples=["There is no job of that id."])


class Problem(Exception):
    """What a view raises to answer with an error: a status, one sentence, and headers if need be."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


def respond(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that failed: a page where a person reads the dashboard, problem JSON to everyone else."""
    title = _title(status)
    if _read_by_a_person():
        response = Response(render_template("problem.html", status=status, title=title, detail=detail), status, mimetype="text/html")
    else:
        body = ProblemBody(type="about:blank", title=title, status=status, detail=detail)
        response = Response(json.dumps(body.model_dump()), status, content_type=CONTENT_TYPE)
    response.headers.update(dict(headers or {}))
    return response


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _read_by_a_person() -> bool:
    if isinstance(request.routing_exception, SecurityError):  # under a name that is not ours no page can be made: it has links
        return False
    return not request.path.startswith(MACHINES) and request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def of_validation(error: ValidationError) -> Response:
    """The answer to a request whose query, path or body is not as described: 422, naming the first field that is wrong."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ").rstrip(".")
    return respond(422, f"{field}: {said}." if field else f"{said}.")


def of_memory(error: MemoryError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer where there was too little memory for a request: that is this machine's shortage, so it may be tried again."""
    log.warning("%s %s: not enough memory", request.method, request.path, exc_info=error)
    sentence = "There is not enough memory for this at the moment; try again shortly."
    return respond(503, sentence, {"Retry-After": RETRY_AFTER_S, **(headers or {})})


def _of_storage(error: StorageError) -> Response:
    if isinstance(error, SourceGone):
        return respond(404, str(error))
    if isinstance(error, ObjectTooLarge):
        return respond(413, str(error))
    log.warning("storage: %s", error)
    if error.permanent:
        return respond(502, str(error))
    return respond(503, str(error), {"Retry-After": RETRY_AFTER_S})


def _of_http(error: HTTPException) -> Response:
    if error.response is not None:  # an answer somebody has made already, such as of_validation's
        return error.response  # type: ignore[return-value]
    status = error.code or 500
    headers = {name: value for name, value in error.get_headers() if name.lower() not in ("content-type", "content-length")}
    sentences = {
        404: f"There is nothing at {request.path}.",
        405: f"{request.method} is not something that {request.path} takes.",
        413: "The request is larger than this server takes.",
    }
    return respond(status, sentences.get(status) or " ".join((error.description or _title(status)).split()), headers)


def _of_database(error: Exception) -> Response:
    log.warning("database: %s", error)
    return respond(503, "The database cannot be reached at the moment; try again shortly.", {"Retry-After": RETRY_AFTER_S})


def _of_value(error: DataError) -> Response:
    log.warning("%s %s: %s", request.method, request.path, error.orig)
    return respond(422, "One of the values is none that can be stored or looked for.")


def _of_anything(error: Exception) -> Response:
    log.exception("%s %s", request.method, request.path, exc_info=error)
    return respond(500, "Something went wrong on our side; the log of the web process says what.")


def install(app: Flask) -> None:
    """Make every error of the application a problem."""
    app.register_error_handler(Problem, lambda error: respond(error.status, error.detail, error.headers))
    app.register_error_handler(ImageRefused, lambda error: respond(422, str(error)))
    app.register_error_handler(InquiryError, lambda error: respond(422, str(error)))
    app.register_error_handler(AccessError, lambda error: respond(404 if error.missing else 422, str(error)))
    app.register_error_handler(LedgerError, lambda error: respond(422, str(error)))
    app.register_error_handler(ModelError, lambda error: respond(409 if error.permanent else 503, str(error)))
    app.register_error_handler(EndpointError, lambda error: respond(404 if error.missing else 422, str(error)))
    app.register_error_handler(OptionsError, lambda error: respond(422, str(error)))
    app.register_error_handler(ScheduleError, lambda error: respond(404 if error.missing else 422, str(error)))
    app.register_error_handler(SecretError, lambda error: respond(409, str(error)))
    app.register_error_handler(FeedbackError, lambda error: respond(404 if error.missing else 422, str(error)))
    app.register_error_handler(CollectionError, lambda error: respond(422 if error.permanent else 503, str(error)))
    app.register_error_handler(GateError, lambda error: respond(409 if error.permanent else 503, str(error)))
    app.register_error_handler(ShadowError, lambda error: respond(422, str(error)))
    app.register_error_handler(StorageError, _of_storage)
    for kind in AWAY:
        app.register_error_handler(kind, _of_database)
    app.register_error_handler(MemoryError, of_memory)
    app.register_error_handler(RecursionError, lambda error: respond(400, "The body is nested too deeply."))
    app.register_error_handler(DataError, _of_value)
    app.register_error_handler(HTTPException, _of_http)
    app.register_error_handler(Exception, _of_anything)
