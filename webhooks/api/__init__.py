"""The JSON API, one module per resource."""

from __future__ import annotations

from flask_openapi3.openapi import OpenAPI

from webhooks.api import audit, deliveries, endpoints, events, jobs, keys, models, predict, queues, schedules, trainings, users


def install(app: OpenAPI) -> None:
    """Add every resource to the application."""
    for resource in (predict, jobs, endpoints, deliveries, events, models, queues, keys, users, audit, trainings, schedules):
        app.register_api(resource.blueprint)
