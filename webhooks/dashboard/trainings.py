"""Trainings on the dashboard: what runs, what came of those before, and the schedules."""

from __future__ import annotations

from typing import Any

from flask import Response, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from pipeline import classroom, options, schedules
from pipeline.cards import DEVICES
from pipeline.jobs import Status
from pipeline.options import OptionsError
from pipeline.schedules import ScheduleError
from pipeline.tables.training import TrainingRow
from webhooks import lessons
from webhooks.access import principal
from webhooks.context import here
from webhooks.dashboard import curves
from webhooks.dashboard.blueprint import blueprint

PAGE = 20
ALIVE = (Status.QUEUED.value, Status.RUNNING.value)


@blueprint.get("/trainings")
def training_list() -> str:
    """What trains now, what trained before, and the schedules."""
    return _page()


def _page(error: str = "", about: str = "") -> str:
    db = here().database
    editing = request.args.get("edit", "")
    rows = schedules.every(db)
    return render_template(
        "trainings.html",
        **_listed(),
        schedules=rows,
        editing=next((row for row in rows if row.name == editing), None),
        form=request.form,
        error=error,
        about=about,
        devices=DEVICES,
        default_device=here().settings.train_device,
        hours=here().settings.train_hours,
        words=schedules.words,
        said=said,
    )


@blueprint.get("/trainings/fragment")
def trainings_fragment() -> Response:
    """The part of the page that changes by itself."""
    listed = _listed()
    return _fragment(render_template("_trainings.html", **listed, said=said), any(row.status in ALIVE for row in listed["rows"]))


def _listed() -> dict[str, Any]:
    db = here().database
    after = request.args.get("after") or None
    rows, following = classroom.page(db, after=after, limit=PAGE)
    running = [row for row in rows if row.status == Status.RUNNING.value]
    return {
        "rows": rows,
        "running": [(row, curves.drawn(classroom.curve(db, row.id))) for row in running],
        "sparks": {row.id: curves.spark(classroom.curve(db, row.id)) for row in rows if row.progress},
        "counts": classroom.counts(db),
        "following": following,
        "after": after,
    }


@blueprint.get("/trainings/<training_id>")
def training(training_id: str) -> str:
    """One training: its curve, what came of it, and what happened to it."""
    return render_template("training.html", **_one(training_id))


@blueprint.get("/trainings/<training_id>/fragment")
def training_fragment(training_id: str) -> Response:
    """The same, for the script that keeps it up to date."""
    found = _one(training_id)
    return _fragment(render_template("_training.html", **found), found["row"].status in ALIVE)


def _one(training_id: str) -> dict[str, Any]:
    context = here()
    row = lessons.find(context, training_id)
    return {
        "row": row,
        "curve": curves.drawn(classroom.curve(context.database, row.id)),
        "history": classroom.history(context.database, row.id),
        "said": said,
    }


def said(row: TrainingRow) -> dict[str, Any]:
    """What the trainer told last, as the page reads it: `share` of the present stage (0 to 1), and figures that may be None."""
    told = row.progress
    step, steps = told.get("step"), told.get("steps")
    share = step / steps if isinstance(step, int) and isinstance(steps, int) and steps else None
    return {
        "share": share,
        **{name: told.get(name) for name in ("epoch", "loss", "auc", "images_per_s", "eta_s", "step", "steps", "stage", "size")},
    }


def _fragment(html: str, unfinished: bool) -> Response:
    response = make_response(html)
    response.headers["X-Unfinished"] = "1" if unfinished else "0"
    return response


# -- deeds


@blueprint.post("/trainings")
def ask_training() -> str | tuple[str, int] | AnyResponse:
    """Ask for a training."""
    try:
        params = options.parsed([word for word in request.form.get("params", "").split() if word] + _hours())
        row = lessons.ask(here(), actor=principal().actor, dataset=request.form.get("dataset", ""), device=_device(), params=params)
    except OptionsError as error:
        return _page(str(error), "training"), 422
    return redirect(url_for("dashboard.training", training_id=row.id), 303)


def _hours() -> list[str]:
    hours = request.form.get("hours", "").strip()
    return [f"hours={hours}"] if hours and "steps=" not in request.form.get("params", "") else []


def _device() -> str | None:
    device = request.form.get("device")
    return device if device in DEVICES else None


@blueprint.post("/trainings/<training_id>/cancel")
def cancel_training(training_id: str) -> AnyResponse:
    """Stop a training."""
    lessons.cancel(here(), training_id, actor=principal().actor)
    return _back(training_id)


@blueprint.post("/trainings/<training_id>/retry")
def retry_training(training_id: str) -> AnyResponse:
    """Let it go on."""
    lessons.retry(here(), training_id, actor=principal().actor)
    return _back(training_id)


def _back(training_id: str) -> AnyResponse:
    if request.form.get("to") == "list":
        return redirect(url_for("dashboard.training_list"), 303)
    return redirect(url_for("dashboard.training", training_id=training_id), 303)


@blueprint.post("/schedules")
def add_schedule() -> tuple[str, int] | AnyResponse:
    """Make a schedule."""
    try:
        values = {"device": here().settings.train_device, **_values()}
        schedules.add(here().database, request.form.get("name", "").strip(), actor=principal().actor, **values)
    except (ScheduleError, OptionsError) as error:
        return _page(str(error), "schedule"), 422
    return redirect(url_for("dashboard.training_list", _anchor="schedules"), 303)


@blueprint.post("/schedules/<name>")
def edit_schedule(name: str) -> tuple[str, int] | AnyResponse:
    """Change a schedule."""
    try:
        schedules.edit(here().database, name, actor=principal().actor, **_values())
    except (ScheduleError, OptionsError) as error:
        return _page(str(error), "schedule"), 422
    return redirect(url_for("dashboard.training_list", _anchor="schedules"), 303)


def _values() -> dict[str, Any]:
    form = request.form
    values: dict[str, Any] = {name: form[name].strip() for name in ("cron", "timezone", "dataset", "missed") if form.get(name) is not None}
    values["on_drift"] = form.get("on_drift") is not None
    values["params"] = options.parsed([word for word in form.get("params", "").split() if word])
    if (device := _device()) is not None:
        values["device"] = device
    return values


@blueprint.post("/schedules/<name>/run")
def run_schedule(name: str) -> AnyResponse:
    """Train now as the schedule would."""
    row = lessons.run_schedule(here(), name, actor=principal().actor)
    return redirect(url_for("dashboard.training", training_id=row.id), 303)


@blueprint.post("/schedules/<name>/<any(enable, disable):what>")
def switch_schedule(name: str, what: str) -> AnyResponse:
    """Turn a schedule on or off."""
    schedules.edit(here().database, name, actor=principal().actor, enabled=what == "enable")
    return redirect(url_for("dashboard.training_list", _anchor="schedules"), 303)


@blueprint.post("/schedules/<name>/remove")
def remove_schedule(name: str) -> AnyResponse:
    """Remove a schedule."""
    schedules.remove(here().database, name, actor=principal().actor)
    return redirect(url_for("dashboard.training_list", _anchor="schedules"), 303)
