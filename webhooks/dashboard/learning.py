"""Labels on a job's page, candidates on the models' page, and the page of drift."""

from __future__ import annotations

from flask import redirect, render_template, request, url_for
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.wrappers import Response as AnyResponse

from pipeline import drift, feedback, gate, pins, reference, shadow
from pipeline.tables.learning import DriftRow
from webhooks import acting, choosing
from webhooks.access import may, principal
from webhooks.context import here
from webhooks.dashboard.blueprint import blueprint

FACE = f"<int(max={2**31 - 1}):index>"
"""A face's index in an address; no database could hold a larger one, nor look for it."""
MEASURES = {"score": "Score", "size": "Size of the face", "blur": "Sharpness", "detection": "Detection"}
CHART = (720.0, 90.0)
"""Of a measure's chart, in units of its drawing."""


@blueprint.post(f"/jobs/<job_id>/faces/{FACE}/label")
def label_face(job_id: str, index: int) -> AnyResponse:
    """Say of a face what it is, or take that back."""
    context = here()
    row = acting.find(context, job_id)
    said = request.form.get("label", "")
    if said == "withdraw":
        feedback.withdraw(context.database, principal(), row.id, index)
    else:
        feedback.label(context.database, principal(), row.id, index, said)
    return redirect(url_for("dashboard.job", job_id=row.id), 303)


@blueprint.post(f"/jobs/<job_id>/faces/{FACE}/pin")
def pin_face(job_id: str, index: int) -> AnyResponse:
    """Let no new model change a face's verdict unless a person agrees."""
    context = here()
    row = acting.find(context, job_id)
    pins.pin_face(context.database, context.storage, context.settings, row.id, index, actor=principal().actor)
    return redirect(url_for("dashboard.job", job_id=row.id), 303)


@blueprint.post("/models/<name>/<version>/approve")
def approve_model(name: str, version: str) -> AnyResponse:
    """Make a candidate that waits for a person the champion."""
    gate.approve(here().database, here().settings, name, version, actor=principal().actor)
    return redirect(url_for("dashboard.model_list"), 303)


@blueprint.post("/models/<name>/<version>/shadow")
def shadow_model(name: str, version: str) -> AnyResponse:
    """Put a version into the shadow, or take it out."""
    context = here()
    if request.form.get("to") == "out":
        shadow.end(context.database, name, version, actor=principal().actor)
    else:
        choosing.begin_shadow(context, name, version)
    return redirect(url_for("dashboard.model_list"), 303)


@blueprint.get("/drift")
def drift_page() -> str:
    """How each day's faces compare with the hold-out."""
    days = drift.days(here().database, limit=60)
    told = {"alarm": drift.alarm(here().database), "lacking": reference.lacking(here().database)}
    return render_template("drift.html", days=days, charts=_charts(days), **told)


def _charts(days: dict[str, list[DriftRow]]) -> list[dict[str, object]]:
    """For each measure its bars over the days, oldest first, in units of the drawing: as high as the index stands to twice its limit."""
    width, height = CHART
    found = []
    for measure in drift.MEASURES:
        rows = [row for day in reversed(days) for row in days[day] if row.measure == measure]
        step = width / max(20, len(rows))
        bars = []
        for place, row in enumerate(rows):
            tall = min(1.0, row.psi / (2 * row.psi_limit)) * height
            bars.append({"x": place * step + 1, "y": height - tall, "w": step - 2, "h": max(1.0, tall), "row": row})
        if bars:
            found.append({"measure": measure, "bars": bars, "width": width, "height": height})
    return found


@blueprint.app_context_processor
def _drifting() -> dict[str, object]:
    return {"drifting": drifting, "MEASURES": MEASURES}


def drifting() -> tuple[str, list[str]] | None:
    """The day and the measures of a standing alarm, for those who may look at it."""
    if not may("dashboard.drift_page"):
        return None
    try:
        return drift.alarm(here().database)
    except SQLAlchemyError:  # a page that says the database is away must not need it
        return None
