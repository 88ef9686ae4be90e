"""Queues: what waits in them, and pausing them."""

from __future__ import annotations

from flask import Response

from pipeline import inquiry, pauses
from webhooks.access import principal
from webhooks.api.blueprints import answer, resource
from webhooks.api.schemas import QueuePath, Queues, QueueState
from webhooks.context import here

blueprint = resource("queues", "One queue per stage and urgency")


@blueprint.get("/queues", responses={200: Queues})
def listing() -> Response:
    """What waits, and what is paused"""
    db = here().database
    backlog = {queue.of(stage): count for (stage, queue), count in inquiry.backlog(db).items()}
    return answer(Queues(paused=sorted(pauses.paused(db)), backlog=backlog))


@blueprint.post("/queues/<string:name>/pause", responses={200: QueueState})
def pause(path: QueuePath) -> Response:
    """Let no more of its jobs start; those that run go on"""
    pauses.pause(here().database, path.name, actor=principal().actor)
    return answer(QueueState(name=path.name, paused=True))


@blueprint.post("/queues/<string:name>/resume", responses={200: QueueState})
def resume(path: QueuePath) -> Response:
    """Let its jobs start again"""
    pauses.resume(here().database, path.name, actor=principal().actor)
    return answer(QueueState(name=path.name, paused=False))
