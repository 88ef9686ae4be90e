"""Model versions on the dashboard."""

from __future__ import annotations

from flask import redirect, render_template, url_for
from werkzeug.wrappers import Response as AnyResponse

from pipeline import gate, registry
from pipeline.database import AliasRow, Database
from pipeline.tables.learning import DecisionRow
from webhooks import choosing
from webhooks.access import may, principal
from webhooks.context import here
from webhooks.dashboard.blueprint import blueprint


@blueprint.get("/models")
def model_list() -> str:
    """Every published version with its card, and which of them judges."""
    db = here().database
    decisions: dict[tuple[str, str], DecisionRow] = {}
    # a decision names pinned uploads, and a shadow tells of everybody's traffic
    for row in gate.decisions(db) if may("learning.decisions") else ():
        decisions.setdefault((row.name, row.version), row)
    shadows = choosing.shadows(here()) if may("learning.shadows") else []
    standing = next(((row, compared) for row, compared in shadows if choosing.running(row)), None)
    shown = {"decisions": decisions, "shadows": shadows, "standing": standing}
    return render_template("models.html", versions=registry.versions(db), previous=_previous(db), **shown)


def _previous(db: Database) -> str | None:
    with db.read() as session:
        alias = session.get(AliasRow, registry.CHAMPION)
        return None if alias is None or alias.previous_name is None else f"{alias.previous_name} {alias.previous_version}"


@blueprint.post("/models/<name>/<version>/promote")
def promote(name: str, version: str) -> AnyResponse:
    """Make a version the champion."""
    registry.promote(here().database, here().settings, name, version, actor=principal().actor)
    return redirect(url_for("dashboard.model_list"), 303)


@blueprint.post("/models/rollback")
def roll_back() -> AnyResponse:
    """Make the former champion champion again."""
    registry.rollback(here().database, here().settings, actor=principal().actor)
    return redirect(url_for("dashboard.model_list"), 303)
