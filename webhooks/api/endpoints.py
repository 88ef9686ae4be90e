"""Webhook receivers: registered, changed, tested, rotated, disabled, removed."""

from __future__ import annotations

from flask import Response

from webhooks import deliveries, endpoints, outbound
from webhooks.access import principal
from webhooks.api import shapes
from webhooks.api.blueprints import answer, resource
from webhooks.api.schemas import (
    Delivery,
    Endpoint,
    EndpointBody,
    EndpointChange,
    EndpointPath,
    Endpoints,
    NewEndpoint,
    ReplayBody,
    Replayed,
    Secret,
)
from webhooks.context import here
from workers.app import deliver_soon

blueprint = resource("endpoints", "Receivers of signed webhooks (Standard Webhooks)")


@blueprint.post("/endpoints", responses={201: NewEndpoint})
def create(body: EndpointBody) -> Response:
    """Register a receiver; the answer holds its secret, this once"""
    context, who = here(), principal()
    row, secret = endpoints.register(
        context.database,
        context.settings,
        body.url,
        description=body.description,
        events=body.events,
        inbox=body.inbox,
        inboxes=who.inboxes,
        by=who.actor,
    )
    made = NewEndpoint(**shapes.endpoint(row).model_dump(), secret=secret)
    return answer(made, 201, Location=f"/v1/endpoints/{row.id}")


@blueprint.get("/endpoints", responses={200: Endpoints})
def listing() -> Response:
    """List receivers"""
    rows = endpoints.all_of_them(here().database, principal().inboxes)
    return answer(Endpoints(endpoints=[shapes.endpoint(row) for row in rows]))


@blueprint.get("/endpoints/<string:id>", responses={200: Endpoint})
def one(path: EndpointPath) -> Response:
    """One receiver"""
    return _one(path.id)


def _one(endpoint_id: str) -> Response:
    return answer(shapes.endpoint(endpoints.get(here().database, endpoint_id, principal().inboxes)))


@blueprint.patch("/endpoints/<string:id>", responses={200: Endpoint})
def change(path: EndpointPath, body: EndpointChange) -> Response:
    """Describe it anew, or let it hear of other events from now on"""
    who = principal()
    endpoints.change(here().database, path.id, description=body.description, events=body.events, inboxes=who.inboxes, by=who.actor)
    return _one(path.id)


@blueprint.delete("/endpoints/<string:id>", responses={204: None})
def remove(path: EndpointPath) -> Response:
    """Remove a receiver, and everything that was to be sent to it"""
    who = principal()
    endpoints.remove(here().database, path.id, who.inboxes, by=who.actor)
    return Response(status=204)


@blueprint.post("/endpoints/<string:id>/rotate", responses={200: Secret})
def rotate(path: EndpointPath) -> Response:
    """Give it a new secret; for 24 hours requests are signed with both"""
    context, who = here(), principal()
    return answer(Secret(secret=endpoints.rotate(context.database, context.settings, path.id, who.inboxes, by=who.actor)))


@blueprint.post("/endpoints/<string:id>/disable", responses={200: Endpoint})
def disable(path: EndpointPath) -> Response:
    """Send it nothing more; what is pending waits"""
    who = principal()
    endpoints.disable(here().database, path.id, inboxes=who.inboxes, by=who.actor)
    return _one(path.id)


@blueprint.post("/endpoints/<string:id>/enable", responses={200: Endpoint})
def enable(path: EndpointPath) -> Response:
    """Send to it again, beginning with what is pending"""
    who = principal()
    endpoints.enable(here().database, path.id, who.inboxes, by=who.actor)
    deliver_soon()
    return _one(path.id)


@blueprint.post("/endpoints/<string:id>/test", responses={200: Delivery})
def test(path: EndpointPath) -> Response:
    """Send it an event `webhook.test` now, and show what came of it"""
    context, who = here(), principal()
    delivery_id = endpoints.add_test(context.database, path.id, who.inboxes, by=who.actor)
    outbound.deliver_one(context.database, context.settings, delivery_id)
    return answer(shapes.delivery(deliveries.get(context.database, delivery_id), public_url=context.settings.url))


@blueprint.post("/endpoints/<string:id>/replay", responses={202: Replayed})
def replay(path: EndpointPath, body: ReplayBody) -> Response:
    """Send it every event of a time range again, each with its own id: those it missed, too"""
    who = principal()
    count = deliveries.replay(
        here().database,
        path.id,
        since=body.since,
        until=body.until,
        undelivered=body.undelivered,
        inboxes=who.inboxes,
        by=who.actor,
    )
    deliver_soon()
    return answer(Replayed(deliveries=count), 202)
