"""Webhook receivers: registered, tested, rotated, disabled, removed."""

from __future__ import annotations

from flask import Response

from webhooks import endpoints, outbound
from webhooks.api import shapes
from webhooks.api.blueprints import answer, resource
from webhooks.api.schemas import Delivery, Endpoint, EndpointBody, EndpointPath, Endpoints, NewEndpoint, ReplayBody, Replayed, Secret
from webhooks.context import here

blueprint = resource("endpoints", "Receivers of signed webhooks (Standard Webhooks)")


@blueprint.post("/endpoints", responses={201: NewEndpoint})
def create(body: EndpointBody) -> Response:
    """Register a receiver; the answer holds its secret, this once"""
    context = here()
    row, secret = endpoints.register(context.database, context.settings, body.url, description=body.description, events=body.events)
    made = NewEndpoint(**shapes.endpoint(row).model_dump(), secret=secret)
    return answer(made, 201, Location=f"/v1/endpoints/{row.id}")


@blueprint.get("/endpoints", responses={200: Endpoints})
def listing() -> Response:
    """List receivers"""
    return answer(Endpoints(endpoints=[shapes.endpoint(row) for row in endpoints.all_of_them(here().database)]))


@blueprint.get("/endpoints/<string:id>", responses={200: Endpoint})
def one(path: EndpointPath) -> Response:
    """One receiver"""
    return answer(shapes.endpoint(endpoints.get(here().database, path.id)))


@blueprint.delete("/endpoints/<string:id>", responses={204: None})
def remove(path: EndpointPath) -> Response:
    """Remove a receiver, and everything that was to be sent to it"""
    endpoints.remove(here().database, path.id)
    return Response(status=204)


@blueprint.post("/endpoints/<string:id>/rotate", responses={200: Secret})
def rotate(path: EndpointPath) -> Response:
    """Give it a new secret; for 24 hours requests are signed with both"""
    context = here()
    return answer(Secret(secret=endpoints.rotate(context.database, context.settings, path.id)))


@blueprint.post("/endpoints/<string:id>/disable", responses={200: Endpoint})
def disable(path: EndpointPath) -> Response:
    """Send it nothing more; what is pending waits"""
    context = here()
    endpoints.disable(context.database, path.id)
    return answer(shapes.endpoint(endpoints.get(context.database, path.id)))


@blueprint.post("/endpoints/<string:id>/enable", responses={200: Endpoint})
def enable(path: EndpointPath) -> Response:
    """Send to it again, beginning with what is pending"""
    context = here()
    endpoints.enable(context.database, path.id)
    return answer(shapes.endpoint(endpoints.get(context.database, path.id)))


@blueprint.post("/endpoints/<string:id>/test", responses={200: Delivery})
def test(path: EndpointPath) -> Response:
    """Send it an event `webhook.test` now, and show what came of it"""
    context = here()
    delivery_id = endpoints.add_test(context.database, path.id)
    outbound.deliver_one(context.database, context.settings, delivery_id)
    return answer(shapes.delivery(endpoints.delivery(context.database, delivery_id)))


@blueprint.post("/endpoints/<string:id>/replay", responses={202: Replayed})
def replay(path: EndpointPath, body: ReplayBody) -> Response:
    """Send it every event of a time range again, each with its own id"""
    return answer(Replayed(deliveries=endpoints.replay(here().database, path.id, since=body.since, until=body.until)), 202)
