"""Webhook receivers on the dashboard: registered, changed, tested, looked into, and told again."""

from __future__ import annotations

import time

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from pipeline import inboxes, outbox
from webhooks import deliveries, endpoints, outbound
from webhooks.access import principal
from webhooks.context import here
from webhooks.dashboard.blueprint import blueprint
from webhooks.endpoints import EndpointError
from webhooks.secretbox import SecretError
from webhooks.sending import body_of
from workers.app import deliver_soon

PAGE = 30
SPANS_S = {"3600": "hour", "86400": "day", "604800": "week", "2592000": "30 days"}
"""How far back a replay may go on the page, in seconds; the API takes any range."""


@blueprint.get("/endpoints")
def endpoint_list() -> str:
    """Every receiver, and a form for a new one."""
    return _list()


def _list(error: str = "") -> str:
    context, who = here(), principal()
    names = [inbox.name for inbox in inboxes.directory(context.settings, context.database).inboxes if who.may_see(inbox.name)]
    rows = endpoints.all_of_them(context.database, who.inboxes)
    return render_template(
        "endpoints.html", rows=rows, types=outbox.TYPES, form=request.form, error=error, inboxes=names, bound=bool(who.inboxes)
    )


def _wanted() -> list[str]:
    """The types that are ticked; all of them is as good as none, and then new ones are wanted as well."""
    wanted = [type for type in outbox.TYPES if type in request.form.getlist("events")]
    return [] if len(wanted) == len(outbox.TYPES) else wanted


@blueprint.post("/endpoints")
def add_endpoint() -> str | tuple[str, int]:
    """Register a receiver and show its secret, this once; so no redirect, which would have to carry it."""
    context, who = here(), principal()
    try:
        row, secret = endpoints.register(
            context.database,
            context.settings,
            request.form.get("url", ""),
            description=request.form.get("description", ""),
            events=_wanted(),
            inbox=request.form.get("inbox") or None,
            inboxes=who.inboxes,
            by=who.actor,
        )
    except (EndpointError, SecretError) as error:
        return _list(str(error)), 422
    return render_template("secret.html", row=row, secret=secret, rotated=False)


@blueprint.get("/endpoints/<endpoint_id>")
def endpoint(endpoint_id: str) -> str:
    """One receiver and what was sent to it."""
    db, who = here().database, principal()
    row = endpoints.get(db, endpoint_id, who.inboxes)
    at = time.time()
    status = request.args.get("status", "")
    found, following = deliveries.page(
        db,
        endpoint_id=endpoint_id,
        status=status if status in ("pending", "delivered", "failed") else None,
        inboxes=who.inboxes,
        after=request.args.get("after") or None,
        limit=PAGE,
    )
    return render_template(
        "endpoint.html",
        row=row,
        deliveries=found,
        following=following,
        status=status,
        rotating=row.previous_until is not None and row.previous_until > at,
        throttled=row.throttled_until is not None and row.throttled_until > at,
        types=outbox.TYPES,
        spans=SPANS_S,
        replayed=request.args.get("replayed", type=int),
    )


@blueprint.post("/endpoints/<endpoint_id>/test")
def test_endpoint(endpoint_id: str) -> AnyResponse:
    """Send a test event now; its delivery is the first on the page."""
    context, who = here(), principal()
    delivery_id = endpoints.add_test(context.database, endpoint_id, who.inboxes, by=who.actor)
    outbound.deliver_one(context.database, context.settings, delivery_id)
    return _to(endpoint_id)


@blueprint.post("/endpoints/<endpoint_id>/change")
def change_endpoint(endpoint_id: str) -> AnyResponse:
    """Let it hear of other events, and describe it anew."""
    who = principal()
    description = request.form.get("description", "")
    endpoints.change(here().database, endpoint_id, description=description, events=_wanted(), inboxes=who.inboxes, by=who.actor)
    return _to(endpoint_id)


@blueprint.post("/endpoints/<endpoint_id>/replay")
def replay_endpoint(endpoint_id: str) -> AnyResponse:
    """Send it the events of the last hour, day, week or month again."""
    who = principal()
    span = request.form.get("span", "")
    since = time.time() - float(span if span in SPANS_S else next(iter(SPANS_S)))
    undelivered = request.form.get("which") != "all"
    count = deliveries.replay(here().database, endpoint_id, since=since, undelivered=undelivered, inboxes=who.inboxes, by=who.actor)
    deliver_soon()
    return redirect(url_for("dashboard.endpoint", endpoint_id=endpoint_id, replayed=count), 303)


@blueprint.post("/endpoints/<endpoint_id>/rotate")
def rotate_endpoint(endpoint_id: str) -> str:
    """Make a new secret and show it, this once."""
    context, who = here(), principal()
    secret = endpoints.rotate(context.database, context.settings, endpoint_id, who.inboxes, by=who.actor)
    return render_template("secret.html", row=endpoints.get(context.database, endpoint_id), secret=secret, rotated=True)


@blueprint.post("/endpoints/<endpoint_id>/<any(enable, disable):what>")
def switch_endpoint(endpoint_id: str, what: str) -> AnyResponse:
    """Turn a receiver on or off."""
    who = principal()
    if what == "enable":
        endpoints.enable(here().database, endpoint_id, who.inboxes, by=who.actor)
        deliver_soon()
    else:
        endpoints.disable(here().database, endpoint_id, inboxes=who.inboxes, by=who.actor)
    return _to(endpoint_id)


@blueprint.post("/endpoints/<endpoint_id>/remove")
def remove_endpoint(endpoint_id: str) -> AnyResponse:
    """Remove a receiver."""
    who = principal()
    endpoints.remove(here().database, endpoint_id, who.inboxes, by=who.actor)
    return redirect(url_for("dashboard.endpoint_list"), 303)


@blueprint.get("/deliveries/<delivery_id>")
def delivery(delivery_id: str) -> str:
    """One delivery: what was sent, and what came back each time."""
    context = here()
    found = deliveries.get(context.database, delivery_id, principal().inboxes)
    return render_template("delivery.html", one=found, body=body_of(found.event.payload, context.settings.url, indent=2))


@blueprint.post("/deliveries/<delivery_id>/redeliver")
def redeliver(delivery_id: str) -> AnyResponse:
    """Send a delivery again, now."""
    context, who = here(), principal()
    deliveries.redeliver(context.database, delivery_id, who.inboxes, by=who.actor)
    outbound.deliver_one(context.database, context.settings, delivery_id)
    found = deliveries.get(context.database, delivery_id, who.inboxes)
    if request.form.get("to") == "job":
        return redirect(url_for("dashboard.job", job_id=found.event.subject), 303)
    if request.form.get("to") == "delivery":
        return redirect(url_for("dashboard.delivery", delivery_id=delivery_id), 303)
    return _to(found.row.endpoint_id)


def _to(endpoint_id: str) -> AnyResponse:
    return redirect(url_for("dashboard.endpoint", endpoint_id=endpoint_id), 303)
