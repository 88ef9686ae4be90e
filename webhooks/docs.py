"""The API's description at `/docs/openapi.json`, and Swagger UI at `/docs`, from the installed wheel: no other host is asked.

`/docs/webhooks` says how to receive webhooks, with programs that do.
"""

from __future__ import annotations

from pathlib import Path

import flask_openapi3_swagger  # type: ignore[import-untyped]
from flask import Blueprint, Response, abort, current_app, jsonify, render_template, send_from_directory
from flask_openapi3.openapi import OpenAPI

from pipeline import payloads
from webhooks.endpoints import ROTATION_S
from webhooks.outcomes import SCHEDULE_S
from webhooks.sending import DEADLINE_S

ASSETS = Path(flask_openapi3_swagger.__file__).parent / "templates" / "swagger"
SHOWN = ("css/swagger-ui.css", "js/swagger-ui-bundle.js")
SNIPPETS = Path(__file__).with_name("snippets")
RECEIVERS = (("Python", "python", "receiver.py"), ("JavaScript (Node.js)", "javascript", "receiver.mjs"), ("Go", "go", "receiver.go"))
"""Name, language and file of each program that is shown; tests run them as the page gives them."""

blueprint = Blueprint("docs", __name__, url_prefix="/docs")


@blueprint.get("")
def page() -> str:
    """Swagger UI."""
    return render_template("docs.html")


@blueprint.get("/webhooks")
def webhooks() -> str:
    """How to receive webhooks."""
    return render_template(
        "receiving.html",
        receivers=[(name, language, (SNIPPETS / file).read_text()) for name, language, file in RECEIVERS],
        events=[(type, " ".join((data.__doc__ or "").split()).replace("`", "")) for type, data in payloads.DATA.items()],
        schedule=", ".join(_long(seconds) for seconds in SCHEDULE_S[1:]),
        rotation_h=f"{ROTATION_S / 3600:.0f}",
        deadline_s=f"{DEADLINE_S:.0f}",
    )


def _long(seconds: int) -> str:
    size, unit = next((size, unit) for size, unit in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= size)
    return f"{seconds / size:g} {unit}"


@blueprint.get("/openapi.json")
def description() -> Response:
    """OpenAPI 3.1."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    assert isinstance(app, OpenAPI)  # noqa: S101
    return jsonify(app.api_doc)


@blueprint.get("/assets/<path:name>")
def asset(name: str) -> Response:
    """A file of Swagger UI."""
    if name not in SHOWN:
        abort(404)
    return send_from_directory(ASSETS, name, max_age=86_400)
