"""The JSON API, one module per resource."""

from __future__ import annotations

from flask_openapi3.openapi import OpenAPI

from webhooks.api import (
    audit,
    deliveries,
    endpoints,
    events,
    inboxes,
    jobs,
    keys,
    labels,
    learning,
    models,
    predict,
    queues,
    schedules,
    trainings,
    users,
)


def install(app: OpenAPI) -> None:
    """Add every resource to the application."""
    for resource in (
        predict,
        jobs,
        inboxes,
        labels,
        endpoints,
        deliveries,
        events,
        models,
        learning,
        queues,
        keys,
        users,
        audit,
        trainings,
        schedules,
    ):
        app.register_api(resource.blueprint)
