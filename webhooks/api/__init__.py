"""The JSON API, one module per resource."""

from __future__ import annotations

from flask_openapi3.openapi import OpenAPI

from webhooks.api import deliveries, endpoints, events, jobs, models, predict, queues


def install(app: OpenAPI) -> None:
    """Add every resource to the application."""
    for resource in (predict, jobs, endpoints, deliveries, events, models, queues):
        app.register_api(resource.blueprint)
