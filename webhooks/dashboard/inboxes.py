"""Inboxes on the dashboard: opened, turned on and off, given up; and how far back-fills are."""

from __future__ import annotations

import time
from typing import Any

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from pipeline import backfills, inboxes, inboxkeeping
from pipeline.inboxes import Inbox, InboxError
from pipeline.jobs import Queue
from webhooks.access import principal
from webhooks.context import here
from webhooks.dashboard.blueprint import blueprint


@blueprint.get("/inboxes")
def inbox_list() -> str:
    """Every inbox, and a form for a new one."""
    return _list()


def _list(error: str = "") -> str:
    context, who = here(), principal()
    places = [place for place in inboxes.directory(context.settings, context.database).inboxes if who.may_see(place.name)]
    filled = [one for one in backfills.all_of_them(context.database) if who.may_see(one.inbox)]
    waiting = backfills.waiting(context.database) if filled and not who.inboxes else None
    shown = {"places": places, "filled": filled, "waiting": waiting, "now": time.time()}
    return render_template("inboxes.html", **shown, queues=tuple(Queue), sources=inboxkeeping.SOURCES, form=request.form, error=error)


@blueprint.post("/inboxes")
def add_inbox() -> AnyResponse | tuple[str, int]:
    """Open an inbox."""
    context = here()
    try:
        inboxkeeping.add(context.database, context.settings, _wanted(), by=principal().actor)
    except InboxError as error:
        return _list(str(error)), 422
    return redirect(url_for("dashboard.inbox_list"), 303)


@blueprint.post("/inboxes/<name>/<any(on, off, remove):what>")
def switch_inbox(name: str, what: str) -> AnyResponse | tuple[str, int]:
    """Turn an inbox on or off, or give it up."""
    context, by = here(), principal().actor
    try:
        if what == "remove":
            inboxkeeping.remove(context.database, name, by=by)
        else:
            inboxkeeping.change(context.database, context.settings, name, by=by, enabled=what == "on")
    except InboxError as error:
        return _list(str(error)), 422
    return redirect(url_for("dashboard.inbox_list"), 303)


def _wanted() -> Inbox:
    text: dict[str, Any] = {
        name: request.form.get(name, "").strip() for name in ("name", "bucket", "prefix", "results_bucket", "results_prefix", "sqs_url")
    }
    thresholds: dict[str, Any] = {}
    for name in ("authentic_below", "manipulated_from"):
        if said := request.form.get(name, "").strip():
            try:
                thresholds[name] = float(said)
            except ValueError as error:
                raise InboxError("A threshold is a number from 0 to 1.") from error
    queue, source = request.form.get("queue", Queue.BULK.value), request.form.get("source", "webhook")
    suffixes = tuple(request.form.get("suffixes", "").lower().replace(",", " ").split())
    if queue not in [one.value for one in Queue]:
        raise InboxError("There is no such urgency.")
    return Inbox(**text, **thresholds, suffixes=suffixes, queue=Queue(queue), source=source)
