"""Model versions, and which of them judges."""

from __future__ import annotations

from flask import Response

from pipeline import registry
from webhooks.access import principal
from webhooks.api import shapes
from webhooks.api.blueprints import answer, resource
from webhooks.api.schemas import ModelChoice, ModelPath, Models
from webhooks.context import here
from webhooks.problems import Problem

blueprint = resource("models", "Published model versions, and the champion among them")


@blueprint.get("/models", responses={200: Models})
def listing() -> Response:
    """List published versions with their cards, newest first"""
    return answer(Models(models=[shapes.version(one) for one in registry.versions(here().database)]))


@blueprint.post("/models/<string:name>/<string:version>/promote", responses={200: ModelChoice})
def promote(path: ModelPath) -> Response:
    """Make a version the champion"""
    db = here().database
    if not any((one.card.name, one.card.version) == (path.name, path.version) for one in registry.versions(db)):
        raise Problem(404, "There is no published model of that name and version.")
    registry.promote(db, here().settings, path.name, path.version, actor=principal().actor)
    return answer(ModelChoice(name=path.name, version=path.version))


@blueprint.post("/models/rollback", responses={200: ModelChoice})
def rollback() -> Response:
    """Make the former champion champion again"""
    name, version = registry.rollback(here().database, here().settings, actor=principal().actor)
    return answer(ModelChoice(name=name, version=version))
