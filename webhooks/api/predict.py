"""`POST /predict`: one image in, its verdict out, as the paper has it; by the same pipeline as everything else."""

from __future__ import annotations

import base64
import time
from threading import BoundedSemaphore

from flask import Response
from pydantic import BaseModel

from pipeline import ledger
from pipeline.database import JobRow
from pipeline.jobs import Queue, Status, new_id
from webhooks import acting, pictures
from webhooks.accepting import inbox_named, receive, store, take
from webhooks.api import shapes
from webhooks.api.blueprints import answer, resource
from webhooks.api.schemas import FileForm, Job, Prediction
from webhooks.context import Context, here
from webhooks.problems import Problem, of_memory, respond

SEATS = 24
"""So many may wait at once; whoever comes then is answered 202 right away, so that the web process stays free."""
FIRST_LOOK_S, LAST_LOOK_S, SLOWER = 0.02, 0.2, 1.25

blueprint = resource("predict", "One image, judged while you wait", prefix=None)
_seats = BoundedSemaphore(SEATS)


@blueprint.post("/predict", responses={200: Prediction, 202: Job})
def predict(form: FileForm) -> Response:
    """Judge one image and wait for the verdict

    Answers 202 with a `Location` to poll if it takes longer than the setting `predict_wait_s`. An image that can never be
    judged (damaged, too large, no image at all) is a 422 that says why. A 503 says in `Retry-After` when to try again; if it
    has a `Location`, the image was judged, and its verdict is there.
    """
    context = here()
    inbox = inbox_named(context, form.inbox)
    placed = store(context, receive(context, form.file), f"predict/{new_id()}", origin="predict", inbox=inbox)
    job_id = take(context, placed.upload, Queue.INTERACTIVE, placed.inbox).job_id
    _wait(context, job_id)
    row = acting.find(context, job_id)
    where = f"/v1/jobs/{job_id}"
    status = Status(row.status)
    if status is Status.DONE:
        try:
            return _answer(_prediction(context, row), where)
        except MemoryError as error:  # the verdict stands: nobody need send the image again
            return of_memory(error, {"Location": where})
    if not status.terminal:
        return answer(shapes.job(context, row), 202, Location=where, Retry_After="1")
    if status is Status.CANCELLED:
        raise Problem(409, "The job was cancelled before it was done.", {"Location": where})
    code = 422 if status in (Status.REFUSED, Status.SOURCE_GONE) else 500
    return respond(code, row.reason or "The image could not be judged.", {"Location": where})


def _answer(body: BaseModel, where: str) -> Response:
    return answer(body, 200, Content_Location=where)


def _wait(context: Context, job_id: str) -> None:
    """Until the job is over, its time is up, or at once if too many wait already. Looks at one primary key, ever less often."""
    if not _seats.acquire(blocking=False):
        return
    try:
        until = time.monotonic() + context.settings.predict_wait_s
        pause = FIRST_LOOK_S
        while (left := until - time.monotonic()) > 0:
            standing = ledger.position(context.database, job_id)
            if standing is None or standing[0].terminal:
                return
            time.sleep(min(pause, left))
            pause = min(pause * SLOWER, LAST_LOOK_S)
    finally:
        _seats.release()


def _prediction(context: Context, row: JobRow) -> Prediction:
    job = shapes.job(context, row, whole=True)
    return Prediction.model_validate(
        {
            "job_id": row.id,
            "verdict": row.verdict,
            "score": row.score,
            "reason": row.reason,
            "faces": job.faces,
            "model": job.model,
            "limits": job.model.limits if job.model else [],
            "annotated_png": base64.b64encode(pictures.annotated_png(context, row)).decode(),
            "timings_ms": row.timings_ms,
            "url": job.url,
        }
    )
