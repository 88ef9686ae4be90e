"""What webhook events look like: a JSON Schema for each type, made of the code that sends them."""

from __future__ import annotations

from flask import Response, jsonify

from pipeline import payloads
from webhooks.api.blueprints import resource
from webhooks.api.schemas import EventPath
from webhooks.problems import Problem

SCHEMA = {"content": {"application/schema+json": {"schema": {"type": "object"}}}}

blueprint = resource("events", "Types of webhook events, and their JSON Schemas")


@blueprint.get("/events/schemas", responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}}})
def schemas() -> Response:
    """The JSON Schema (2020-12) of each type of event, by type"""
    return jsonify(payloads.schemas())


@blueprint.get("/events/schemas/<string:type>", responses={200: SCHEMA})
def schema(path: EventPath) -> Response:
    """The JSON Schema of one type of event"""
    if path.type not in payloads.DATA:
        raise Problem(404, "There is no event of that type.")
    response = jsonify(payloads.schema(path.type))
    response.mimetype = "application/schema+json"
    return response
