"""Trainings: asked for, looked at, cancelled, sent on."""

from __future__ import annotations

from flask import Response

from pipeline import classroom
from pipeline.jobs import Status
from webhooks import lessons
from webhooks.access import principal
from webhooks.api import lessons as shapes
from webhooks.api.blueprints import answer, resource
from webhooks.api.lessons import Training, TrainingBody, TrainingPath, TrainingQuery, Trainings
from webhooks.context import here

blueprint = resource("trainings", "Trainings of new model versions")


@blueprint.post("/trainings", responses={202: Training})
def create(body: TrainingBody) -> Response:
    """Ask for a training; workers that own cards take it in turn"""
    context = here()
    params = body.params.model_dump(exclude_none=True)
    row = lessons.ask(context, actor=principal().actor, dataset=body.dataset, device=body.device, params=params)
    made = shapes.training(row, context.settings.url)
    return answer(made, 202, Location=made.url)


@blueprint.get("/trainings", responses={200: Trainings})
def listing(query: TrainingQuery) -> Response:
    """List trainings, newest first"""
    context = here()
    status = None if query.status is None else Status(query.status)
    rows, following = classroom.page(context.database, status=status, schedule=query.schedule, after=query.after, limit=query.limit)
    return answer(Trainings(trainings=[shapes.training(row, context.settings.url) for row in rows], next=following))


@blueprint.get("/trainings/<string:id>", responses={200: Training})
def one(path: TrainingPath) -> Response:
    """One training, with its curve and its history"""
    context = here()
    row = lessons.find(context, path.id)
    curve, history = classroom.curve(context.database, row.id), classroom.history(context.database, row.id)
    return answer(shapes.training(row, context.settings.url, curve=curve, history=history))


@blueprint.post("/trainings/<string:id>/cancel", responses={200: Training})
def cancel(path: TrainingPath) -> Response:
    """Stop a training; its last checkpoint is kept"""
    context = here()
    return answer(shapes.training(lessons.cancel(context, path.id, actor=principal().actor), context.settings.url))


@blueprint.post("/trainings/<string:id>/retry", responses={202: Training})
def retry(path: TrainingPath) -> Response:
    """Let a failed or cancelled training go on from its last checkpoint"""
    context = here()
    return answer(shapes.training(lessons.retry(context, path.id, actor=principal().actor), context.settings.url), 202)
