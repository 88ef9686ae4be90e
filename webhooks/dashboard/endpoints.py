"""Webhook receivers on the dashboard: registered, tested, looked into."""

from __future__ import annotations

import time

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from pipeline import outbox
from webhooks import endpoints, outbound
from webhooks.context import here
from webhooks.dashboard.blueprint import blueprint
from webhooks.endpoints import EndpointError
from webhooks.secretbox import SecretError
from workers.app import deliver_soon

PAGE = 30


@blueprint.get("/endpoints")
def endpoint_list() -> str:
    """Every receiver, and a form for a new one."""
    return _list()


def _list(error: str = "") -> str:
    rows = endpoints.all_of_them(here().database)
    return render_template("endpoints.html", rows=rows, types=outbox.TYPES, form=request.form, error=error)


@blueprint.post("/endpoints")
def add_endpoint() -> str | tuple[str, int]:
    """Register a receiver and show its secret, this once; so no redirect, which would have to carry it."""
    context = here()
    wanted = [type for type in outbox.TYPES if type in request.form.getlist("events")]
    try:
        row, secret = endpoints.register(
            context.database,
            context.settings,
            request.form.get("url", ""),
            description=request.form.get("description", ""),
            events=[] if len(wanted) == len(outbox.TYPES) else wanted,
        )
    except (EndpointError, SecretError) as error:
        return _list(str(error)), 422
    return render_template("secret.html", row=row, secret=secret, rotated=False)


@blueprint.get("/endpoints/<endpoint_id>")
def endpoint(endpoint_id: str) -> str:
    """One receiver and what was sent to it."""
    db = here().database
    row = endpoints.get(db, endpoint_id)
    rotating = row.previous_until is not None and row.previous_until > time.time()
    status = request.args.get("status", "")
    deliveries, following = endpoints.deliveries(
        db,
        endpoint_id=endpoint_id,
        status=status if status in ("pending", "delivered", "failed") else None,
        after=request.args.get("after") or None,
        limit=PAGE,
    )
    return render_template("endpoint.html", row=row, deliveries=deliveries, following=following, status=status, rotating=rotating)


@blueprint.post("/endpoints/<endpoint_id>/test")
def test_endpoint(endpoint_id: str) -> AnyResponse:
    """Send a test event now; its delivery is the first on the page."""
    context = here()
    outbound.deliver_one(context.database, context.settings, endpoints.add_test(context.database, endpoint_id))
    return _to(endpoint_id)


@blueprint.post("/endpoints/<endpoint_id>/rotate")
def rotate_endpoint(endpoint_id: str) -> str:
    """Make a new secret and show it, this once."""
    context = here()
    secret = endpoints.rotate(context.database, context.settings, endpoint_id)
    return render_template("secret.html", row=endpoints.get(context.database, endpoint_id), secret=secret, rotated=True)


@blueprint.post("/endpoints/<endpoint_id>/<any(enable, disable):what>")
def switch_endpoint(endpoint_id: str, what: str) -> AnyResponse:
    """Turn a receiver on or off."""
    (endpoints.enable if what == "enable" else endpoints.disable)(here().database, endpoint_id)
    if what == "enable":
        deliver_soon()
    return _to(endpoint_id)


@blueprint.post("/endpoints/<endpoint_id>/remove")
def remove_endpoint(endpoint_id: str) -> AnyResponse:
    """Remove a receiver."""
    endpoints.remove(here().database, endpoint_id)
    return redirect(url_for("dashboard.endpoint_list"), 303)


@blueprint.post("/deliveries/<delivery_id>/redeliver")
def redeliver(delivery_id: str) -> AnyResponse:
    """Send a delivery again, now."""
    context = here()
    endpoints.redeliver(context.database, delivery_id)
    outbound.deliver_one(context.database, context.settings, delivery_id)
    found = endpoints.delivery(context.database, delivery_id)
    if request.form.get("to") == "job":
        return redirect(url_for("dashboard.job", job_id=found.event.subject), 303)
    return _to(found.row.endpoint_id)


def _to(endpoint_id: str) -> AnyResponse:
    return redirect(url_for("dashboard.endpoint", endpoint_id=endpoint_id), 303)
