"""Schedules of trainings."""

from __future__ import annotations

from flask import Response

from pipeline import schedules
from webhooks import lessons
from webhooks.access import principal
from webhooks.api import lessons as shapes
from webhooks.api.blueprints import answer, resource
from webhooks.api.lessons import Schedule, ScheduleBody, ScheduleEdit, SchedulePath, Schedules, Training
from webhooks.context import here

blueprint = resource("schedules", "When to train anew")


@blueprint.get("/schedules", responses={200: Schedules})
def listing() -> Response:
    """List schedules by name"""
    return answer(Schedules(schedules=[shapes.schedule(row) for row in schedules.every(here().database)]))


@blueprint.post("/schedules", responses={201: Schedule})
def create(body: ScheduleBody) -> Response:
    """Make a schedule"""
    context = here()
    values = {"device": context.settings.train_device, **body.changes()}
    row = schedules.add(context.database, values.pop("name"), actor=principal().actor, **values)
    return answer(shapes.schedule(row), 201, Location=f"/v1/schedules/{row.name}")


@blueprint.get("/schedules/<string:name>", responses={200: Schedule})
def one(path: SchedulePath) -> Response:
    """One schedule"""
    return answer(shapes.schedule(schedules.get(here().database, path.name)))


@blueprint.patch("/schedules/<string:name>", responses={200: Schedule})
def change(path: SchedulePath, body: ScheduleEdit) -> Response:
    """Change a schedule; what is left out stays"""
    return answer(shapes.schedule(schedules.edit(here().database, path.name, actor=principal().actor, **body.changes())))


@blueprint.delete("/schedules/<string:name>", responses={204: None})
def remove(path: SchedulePath) -> Response:
    """Remove a schedule; its trainings stay"""
    schedules.remove(here().database, path.name, actor=principal().actor)
    return Response(status=204)


@blueprint.post("/schedules/<string:name>/run", responses={202: Training})
def run(path: SchedulePath) -> Response:
    """Train now as the schedule would, beside its slots"""
    context = here()
    row = lessons.run_schedule(context, path.name, actor=principal().actor)
    return answer(shapes.training(row, context.settings.url), 202, Location=f"{context.settings.url}/v1/trainings/{row.id}")
