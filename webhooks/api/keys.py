"""API keys: made, listed, revoked. And who one is oneself."""

from __future__ import annotations

from flask import Response

from pipeline import keys
from webhooks.access import must_keep_a_door, principal
from webhooks.api import people
from webhooks.api.blueprints import answer, resource
from webhooks.api.people import Key, KeyPath, Keys, Me, NewKey, NewKeyBody
from webhooks.context import here

blueprint = resource("keys", "Who may come in: keys of programs")


@blueprint.get("/me", responses={200: Me})
def me() -> Response:
    """Who you are, and what you may"""
    return answer(people.me(principal()))


@blueprint.get("/keys", responses={200: Keys})
def listing() -> Response:
    """List keys, newest first, revoked and expired ones too"""
    return answer(Keys(keys=[people.key(row) for row in keys.all_of_them(here().database)]))


@blueprint.post("/keys", responses={201: NewKey})
def create(body: NewKeyBody) -> Response:
    """Make a key; the answer holds it, this once"""
    must_keep_a_door(body.role, body.inboxes)
    row, key = keys.add(here().database, body.name, body.role, inboxes=body.inboxes, days=body.days, actor=principal().actor)
    return answer(NewKey(**people.key(row).model_dump(), key=key), 201, Location=f"/v1/keys/{row.id}")


@blueprint.get("/keys/<string:id>", responses={200: Key})
def one(path: KeyPath) -> Response:
    """One key"""
    return answer(people.key(keys.get(here().database, path.id)))


@blueprint.post("/keys/<string:id>/revoke", responses={200: Key})
def revoke(path: KeyPath) -> Response:
    """Let it open nothing any more, from now on"""
    return answer(people.key(keys.revoke(here().database, path.id, actor=principal().actor)))
