"""Model versions on the dashboard."""

from __future__ import annotations

from flask import redirect, render_template, url_for
from werkzeug.wrappers import Response as AnyResponse

from pipeline import registry
from pipeline.database import AliasRow, Database
from webhooks.context import here
from webhooks.dashboard.blueprint import blueprint


@blueprint.get("/models")
def model_list() -> str:
    """Every published version with its card, and which of them judges."""
    db = here().database
    return render_template("models.html", versions=registry.versions(db), previous=_previous(db))


def _previous(db: Database) -> str | None:
    with db.read() as session:
        alias = session.get(AliasRow, registry.CHAMPION)
        return None if alias is None or alias.previous_name is None else f"{alias.previous_name} {alias.previous_version}"


@blueprint.post("/models/<name>/<version>/promote")
def promote(name: str, version: str) -> AnyResponse:
    """Make a version the champion."""
    registry.promote(here().database, name, version)
    return redirect(url_for("dashboard.model_list"), 303)


@blueprint.post("/models/rollback")
def roll_back() -> AnyResponse:
    """Make the former champion champion again."""
    registry.rollback(here().database)
    return redirect(url_for("dashboard.model_list"), 303)
