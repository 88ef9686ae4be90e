"""The blueprint that every page belongs to, and what every page shows."""

from __future__ import annotations

from typing import Any

from flask import Blueprint
from sqlalchemy.exc import SQLAlchemyError

from webhooks import access, outbound, sessions
from webhooks.context import here
from webhooks.dashboard import words

blueprint = Blueprint("dashboard", __name__, template_folder="templates", static_folder="static", static_url_path="/static", url_prefix="")


@blueprint.app_context_processor
def _every_page() -> dict[str, Any]:
    return {"logged_in": sessions.begun, "notices": notices, "whoami": _name}


def _name() -> str:
    return sessions.user() or "API key"


def notices() -> list[tuple[str, str]]:
    """Endpoints that were disabled because nothing reached them: id and sentence. For those who can do something about it."""
    if not access.may("dashboard.endpoint"):
        return []
    try:
        rows = outbound.disabled(here().database, access.principal().inboxes)
        return [(row.id, f"Webhooks to {row.url} are off. {row.disabled_reason}") for row in rows]
    except SQLAlchemyError:  # a page that says the database is away must not need it
        return []


@blueprint.record_once
def _vocabulary(state: Any) -> None:
    words.install(state.app)
