"""How each resource's blueprint is made, so that all describe themselves alike."""

from __future__ import annotations

from typing import Any

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel

from webhooks.problems import CONTENT_TYPE, ProblemBody

PROBLEM: dict[str, Any] = {
    "description": "A problem (RFC 9457), with one sentence",
    "content": {CONTENT_TYPE: {"schema": ProblemBody.model_json_schema()}},
}


def resource(name: str, about: str, *, prefix: str | None = "/v1") -> APIBlueprint:
    """A blueprint whose routes may answer any problem and take the API key."""
    return APIBlueprint(
        name,
        f"webhooks.api.{name}",
        url_prefix=prefix,
        abp_tags=[Tag(name=name, description=about)],
        abp_security=[{"key": []}],
        abp_responses={"422": PROBLEM, "default": PROBLEM},
    )


def answer(body: BaseModel, status: int = 200, **headers: str) -> Response:
    """A JSON answer. Header names are given with underscores."""
    response = Response(body.model_dump_json(), status, mimetype="application/json")
    for name, value in headers.items():
        response.headers[name.replace("_", "-")] = value
    return response


def picture(data: bytes, kind: str) -> Response:
    """A picture that never changes."""
    response = Response(data, mimetype=kind)
    response.headers["Cache-Control"] = "private, max-age=86400, immutable"
    return response
