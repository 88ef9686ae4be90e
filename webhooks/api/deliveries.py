"""The log of webhook deliveries."""

from __future__ import annotations

from flask import Response

from webhooks import deliveries
from webhooks.access import principal
from webhooks.api import shapes
from webhooks.api.blueprints import answer, resource
from webhooks.api.schemas import Deliveries, DeliveriesQuery, Delivery, DeliveryPath
from webhooks.context import here
from workers.app import deliver_soon

blueprint = resource("deliveries", "What was sent to receivers, and what they answered")


@blueprint.get("/deliveries", responses={200: Deliveries})
def listing(query: DeliveriesQuery) -> Response:
    """List deliveries with their attempts, newest first"""
    found, following = deliveries.page(
        here().database,
        endpoint_id=query.endpoint_id,
        status=query.status,
        subject=query.job_id,
        event_type=query.event_type,
        inboxes=principal().inboxes,
        after=query.after,
        limit=query.limit,
    )
    return answer(Deliveries(deliveries=[shapes.delivery(one) for one in found], next=following))


@blueprint.get("/deliveries/<string:id>", responses={200: Delivery})
def one(path: DeliveryPath) -> Response:
    """One delivery: the event, and every attempt with its headers and the beginning of the answer"""
    return _one(path.id)


@blueprint.post("/deliveries/<string:id>/redeliver", responses={202: Delivery})
def redeliver(path: DeliveryPath) -> Response:
    """Send it again, with the event's own id"""
    who = principal()
    deliveries.redeliver(here().database, path.id, who.inboxes, by=who.actor)
    deliver_soon()
    return _one(path.id, 202)


def _one(delivery_id: str, status: int = 200) -> Response:
    context = here()
    found = deliveries.get(context.database, delivery_id, principal().inboxes)
    return answer(shapes.delivery(found, public_url=context.settings.url), status)
