"""Jobs: made of an object or a file, listed, looked at, retried and cancelled."""

from __future__ import annotations

import uuid

from flask import Response, request
from pydantic import ValidationError
from werkzeug.datastructures import FileStorage

from pipeline import inquiry
from pipeline.jobs import Queue, new_id
from webhooks import acting, pictures
from webhooks.accepting import Placed, found, inbox_named, receive, store, take
from webhooks.access import principal
from webhooks.api import shapes
from webhooks.api.blueprints import answer, picture, resource
from webhooks.api.schemas import FacePath, Job, JobPath, Jobs, JobsQuery, KeyBody, PictureQuery
from webhooks.context import Context, here
from webhooks.problems import Problem, of_validation

RESULT_BYTES = 50_000_000
NAMESPACE = uuid.UUID("6f1d2f5e-8a4b-4c39-9f57-0d5f6c3c1f0a")

blueprint = resource("jobs", "Images on their way, and what became of them")

JPEG = {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
PNG = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
FORM = {"file": {"type": "string", "format": "binary"}, "inbox": {"type": "string", "maxLength": 64}}
CREATE = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": KeyBody.model_json_schema()},
            "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": FORM}},
        },
    },
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "With a file: the same key gives the same job, however often it is sent; with another file it is a 422",
            "schema": {"type": "string", "maxLength": 255},
        }
    ],
}


@blueprint.post("/jobs", responses={200: Job, 202: Job}, openapi_extensions=CREATE)
def create() -> Response:
    """Have an image judged

    Send `{"key": …}` for an object that lies in the inbox bucket, or the image itself as multipart form field `file`.
    202: a job was made; 200: the object had one, and this is it. Poll the `Location`, or wait for the webhook.
    """
    context = here()
    if request.mimetype == "application/json":
        try:
            body = KeyBody.model_validate(request.get_json(silent=True))
        except ValidationError as error:
            return of_validation(error)
        placed = found(context, body.key, origin="submit", inbox=inbox_named(context, body.inbox))
    else:
        placed = _stored(context, request.files.get("file"))
    accepted = take(context, placed.upload, Queue.BULK, placed.inbox)
    row = acting.find(context, accepted.job_id)
    return answer(shapes.job(context, row), 202 if accepted.created else 200, Location=f"/v1/jobs/{row.id}")


def _stored(context: Context, file: FileStorage | None) -> Placed:
    received = receive(context, file)
    inbox = inbox_named(context, request.form.get("inbox"))
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return store(context, received, f"submit/{new_id()}", origin="submit", inbox=inbox)
    folder = f"submit/{uuid.uuid5(NAMESPACE, f'{principal().actor} {key}')}"  # nobody finds another's by guessing their keys
    before = next(context.storage.listing(inbox.bucket, prefix := f"{inbox.prefix}{folder}/"), None)
    if before is None:
        return store(context, received, folder, origin="submit", inbox=inbox)
    alike = (before.key, before.size) == (prefix + received.name, len(received.data))
    # Read, because an ETag is the MD5 of the bytes in some stores and for some objects only.
    if not alike or context.storage.fetch(inbox.bucket, before.key, etag=before.etag, max_bytes=before.size) != received.data:
        raise Problem(422, "This Idempotency-Key was used with another file.")
    return found(context, before.key, origin="submit", inbox=inbox)


@blueprint.get("/jobs", responses={200: Jobs})
def listing(query: JobsQuery) -> Response:
    """List jobs, newest first"""
    context = here()
    rows, following = inquiry.page(
        context.database,
        status=query.status,
        verdict=query.verdict,
        prefix=query.prefix,
        origin=query.origin,
        inboxes=principal().inboxes,
        after=query.after,
        limit=query.limit,
    )
    return answer(Jobs(jobs=[shapes.job(context, row) for row in rows], next=following))


@blueprint.get("/jobs/<string:id>", responses={200: Job})
def one(path: JobPath) -> Response:
    """One job, with its faces"""
    context = here()
    return answer(shapes.job(context, acting.find(context, path.id), whole=True))


@blueprint.get("/jobs/<string:id>/annotated.png", responses={200: PNG})
def annotated(path: JobPath) -> Response:
    """The image with a mesh over the manipulated faces"""
    context = here()
    return picture(pictures.annotated_png(context, acting.find(context, path.id)), "image/png")


@blueprint.get("/jobs/<string:id>/annotated.jpg", responses={200: JPEG})
def annotated_small(path: JobPath, query: PictureQuery) -> Response:
    """The annotated image, small"""
    context = here()
    return picture(pictures.annotated(context, acting.find(context, path.id), query.side), "image/jpeg")


@blueprint.get("/jobs/<string:id>/source.jpg", responses={200: JPEG})
def source(path: JobPath, query: PictureQuery) -> Response:
    """The uploaded image, small and written anew: nothing but its pixels"""
    context = here()
    return picture(pictures.source(context, acting.find(context, path.id), query.side), "image/jpeg")


@blueprint.get("/jobs/<string:id>/faces/<int:index>.jpg", responses={200: JPEG})
def face(path: FacePath) -> Response:
    """One face, cut from the image"""
    context = here()
    row = acting.find(context, path.id)
    for candidate in shapes.face_rows(context.database, row.id):
        if candidate.index == path.index:
            return picture(pictures.face(context, row, candidate), "image/jpeg")
    raise Problem(404, "The job has no face of that index.")


@blueprint.get("/jobs/<string:id>/result.json", responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}}})
def result(path: JobPath) -> Response:
    """The result as it lies in the results bucket"""
    context = here()
    row = acting.find(context, path.id)
    return Response(pictures.result(context, row, row.result_key, RESULT_BYTES), mimetype="application/json")


@blueprint.post("/jobs/<string:id>/retry", responses={202: Job})
def retry(path: JobPath) -> Response:
    """Send a job that ended without a result through again"""
    context = here()
    return answer(shapes.job(context, acting.retry(context, path.id)), 202)


@blueprint.post("/jobs/<string:id>/cancel", responses={200: Job})
def cancel(path: JobPath) -> Response:
    """Stop a job that is queued or running"""
    context = here()
    return answer(shapes.job(context, acting.cancel(context, path.id)))
