"""The list of jobs, and a job's page."""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Lock
from typing import Any
from urllib.parse import urlencode

from flask import Response, make_response, redirect, render_template, request, url_for
from sqlalchemy import func, select
from werkzeug.wrappers import Response as AnyResponse

from pipeline import feedback, inboxes, inquiry
from pipeline.database import Database, JobRow
from pipeline.jobs import Queue, Status, Verdict, new_id
from webhooks import acting, auditing, deliveries
from webhooks.accepting import inbox_named, must_be_takable, receive, store, take
from webhooks.access import may, principal
from webhooks.api.shapes import face_rows
from webhooks.context import Context, here
from webhooks.dashboard import judging
from webhooks.dashboard.blueprint import blueprint
from webhooks.deliveries import Delivery
from webhooks.problems import Problem

PAGE = 40
UPLOAD_BYTES = 200_000_000
"""Of one form, which may hold many images."""
COUNTED_S = 1.0
SOON_S = 10.0


@dataclass(frozen=True)
class Filters:
    """What the list is narrowed to, as in the address of the page."""

    status: str = ""
    verdict: str = ""
    prefix: str = ""
    after: str = ""

    @classmethod
    def of_request(cls) -> Filters:
        """From the query string; Problem 422 for a status or verdict that there is none of."""
        chosen = cls(**{name: request.args.get(name, "") for name in ("status", "verdict", "prefix", "after")})
        if chosen.status and chosen.status not in [status.value for status in Status]:
            raise Problem(422, f"There is no status {chosen.status!r}.")
        if chosen.verdict and chosen.verdict not in [verdict.value for verdict in Verdict]:
            raise Problem(422, f"There is no verdict {chosen.verdict!r}.")
        return chosen

    def query(self, **changed: str) -> dict[str, str]:
        """The query string with something changed, without what is empty; the page starts over unless `after` is given."""
        values = {"status": self.status, "verdict": self.verdict, "prefix": self.prefix} | changed
        return {name: value for name, value in values.items() if value}


def allow_many() -> None:
    """Let the form for images be larger than a request of one image; has to run before anything reads the form."""
    if request.endpoint == "dashboard.upload":
        request.max_content_length = UPLOAD_BYTES


@blueprint.get("/")
def index() -> str:
    """All jobs, newest first, with the counts on top."""
    filters = Filters.of_request()
    return render_template("jobs.html", filters=filters, places=_places(here()), **_list(here(), filters))


def _places(context: Context) -> list[str]:
    """The inboxes that whoever looks may put images into."""
    among = inboxes.directory(context.settings, context.database).inboxes
    return [inbox.name for inbox in among if inbox.enabled and principal().may_see(inbox.name)]


@blueprint.get("/fragments/jobs")
def jobs_fragment() -> Response:
    """The part of the list that changes."""
    filters = Filters.of_request()
    shown = _list(here(), filters)
    return _fragment(render_template("_jobs.html", filters=filters, **shown), any(not Status(row.status).terminal for row in shown["rows"]))


def _list(context: Context, filters: Filters) -> dict[str, Any]:
    rows, following = inquiry.page(
        context.database,
        status=Status(filters.status) if filters.status else None,
        verdict=Verdict(filters.verdict) if filters.verdict else None,
        prefix=filters.prefix or None,
        inboxes=principal().inboxes,
        after=filters.after or None,
        limit=PAGE,
    )
    counts = _counter.look(context.database, principal().inboxes)
    thresholds = judging.thresholds(context, rows, judging.cards(context.database, rows))
    card = judging.champion(context.database)
    return {"rows": rows, "following": following, "counts": counts, "card": card, "thresholds": thresholds}


@blueprint.get("/jobs/<job_id>")
def job(job_id: str) -> str:
    """One job."""
    context = here()
    return render_template("job.html", **_whole(context, acting.find(context, job_id)))


@blueprint.get("/fragments/jobs/<job_id>")
def job_fragment(job_id: str) -> Response:
    """The part of a job's page that changes."""
    context = here()
    shown = _whole(context, acting.find(context, job_id))
    return _fragment(render_template("_job.html", **shown), shown["unfinished"])


def _whole(context: Context, row: JobRow) -> dict[str, Any]:
    db = context.database
    told = may("dashboard.endpoint")
    sent = deliveries.page(db, subject=row.id, inboxes=principal().inboxes, limit=50)[0] if told else []
    cards = judging.cards(db, [row])
    return {
        "job": row,
        "faces": face_rows(db, row.id),
        "labels": feedback.standings(db, row.id),
        "me": principal().actor,
        "history": inquiry.history(db, row.id),
        "deliveries": sent,
        "card": next(iter(cards.values()), None),
        "thresholds": judging.thresholds(context, [row], cards).get(row.id),
        "terminal": Status(row.status).terminal,
        "unfinished": not Status(row.status).terminal or any(_soon(delivery) for delivery in sent),
        "timings": [(name, row.timings_ms[name]) for name in ("wait", "extract", "classify", "render") if name in row.timings_ms],
    }


def _soon(delivery: Delivery) -> bool:
    """Whether a delivery is about to be attempted, so that it is worth waiting for."""
    row = delivery.row
    return row.status == "pending" and not delivery.disabled and (row.next_attempt_at or 0.0) < time.time() + SOON_S


def _fragment(html: str, unfinished: bool) -> Response:
    response = make_response(html)
    response.headers["X-Unfinished"] = "1" if unfinished else "0"
    return response


@blueprint.post("/jobs/<job_id>/retry")
def retry(job_id: str) -> AnyResponse:
    """Send a job through again."""
    acting.retry(here(), job_id)
    return _back(job_id)


@blueprint.post("/jobs/<job_id>/cancel")
def cancel(job_id: str) -> AnyResponse:
    """Stop a job."""
    acting.cancel(here(), job_id)
    return _back(job_id)


def _back(job_id: str) -> AnyResponse:
    if request.form.get("to") == "list":
        where = urlencode(Filters.of_request().query(after=request.args.get("after", "")))
        return redirect(url_for("dashboard.index") + (f"?{where}" if where else ""), 303)
    return redirect(url_for("dashboard.job", job_id=job_id), 303)


@blueprint.post("/upload")
def upload() -> AnyResponse:
    """Have images judged that a person chose or dropped on the page."""
    context = here()
    files = [file for file in request.files.getlist("file") if file.filename]
    if not files:
        raise Problem(422, "No file was chosen.")
    inbox = inbox_named(context, request.form.get("inbox"))
    must_be_takable(context, files, f"dashboard/{new_id()}", inbox)
    made = ""
    for file in files:
        placed = store(context, receive(context, file), f"dashboard/{new_id()}", origin="submit", inbox=inbox)
        made = take(context, placed.upload, Queue.INTERACTIVE, placed.inbox).job_id
        auditing.note("job.submit", made)  # now: the store may be away for the next one
    if len(files) == 1:
        return redirect(url_for("dashboard.job", job_id=made), 303)
    return redirect(url_for("dashboard.index"), 303)


class _Counter:
    """The counts on top, counted at most once a second however many people look."""

    def __init__(self) -> None:
        self._known: dict[tuple[Database, frozenset[str]], tuple[float, dict[str, int]]] = {}
        self._lock = Lock()

    def look(self, db: Database, inboxes: frozenset[str]) -> dict[str, int]:
        with self._lock:
            at, counts = self._known.get((db, inboxes), (0.0, {}))
            if time.monotonic() - at < COUNTED_S and counts:
                return counts
            self._known[db, inboxes] = (time.monotonic(), counts := self._count(db, inboxes))
            return counts

    def _count(self, db: Database, inboxes: frozenset[str]) -> dict[str, int]:
        query = select(JobRow.status, JobRow.verdict, func.count()).group_by(JobRow.status, JobRow.verdict)
        with db.read() as session:
            found = session.execute(query.where(JobRow.inbox.in_(inboxes)) if inboxes else query).all()
        counts = dict.fromkeys(["all", *(status.value for status in Status), *(verdict.value for verdict in Verdict)], 0)
        for status, verdict, number in found:
            counts["all"] += number
            counts[status] += number
            if status == Status.DONE.value and verdict in counts:
                counts[verdict] += number
        return counts


_counter = _Counter()
