"""The log of webhook deliveries."""

from __future__ import annotations

from flask import Response

from webhooks import endpoints
from webhooks.api import shapes
from webhooks.api.blueprints import answer, resource
from webhooks.api.schemas import Deliveries, DeliveriesQuery, Delivery, DeliveryPath
from webhooks.context import here
from workers.app import deliver_soon

blueprint = resource("deliveries", "What was sent to receivers, and what they answered")


@blueprint.get("/deliveries", responses={200: Deliveries})
def listing(query: DeliveriesQuery) -> Response:
    """List deliveries with their attempts, newest first"""
    found, following = endpoints.deliveries(
        here().database, endpoint_id=query.endpoint_id, status=query.status, subject=query.job_id, after=query.after, limit=query.limit
    )
    return answer(Deliveries(deliveries=[shapes.delivery(one) for one in found], next=following))


@blueprint.get("/deliveries/<string:id>", responses={200: Delivery})
def one(path: DeliveryPath) -> Response:
    """One delivery"""
    return answer(shapes.delivery(endpoints.delivery(here().database, path.id)))


@blueprint.post("/deliveries/<string:id>/redeliver", responses={202: Delivery})
def redeliver(path: DeliveryPath) -> Response:
    """Send it again, with the event's own id"""
    context = here()
    endpoints.redeliver(context.database, path.id)
    deliver_soon()
    return answer(shapes.delivery(endpoints.delivery(context.database, path.id)), 202)
