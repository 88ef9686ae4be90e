"""The API's description at `/docs/openapi.json`, and Swagger UI at `/docs`, from the installed wheel: no other host is asked."""

from __future__ import annotations

from pathlib import Path

import flask_openapi3_swagger  # type: ignore[import-untyped]
from flask import Blueprint, Response, abort, current_app, jsonify, render_template, send_from_directory
from flask_openapi3.openapi import OpenAPI

ASSETS = Path(flask_openapi3_swagger.__file__).parent / "templates" / "swagger"
SHOWN = ("css/swagger-ui.css", "js/swagger-ui-bundle.js")

blueprint = Blueprint("docs", __name__, url_prefix="/docs")


@blueprint.get("")
def page() -> str:
    """Swagger UI."""
    return render_template("docs.html")


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
