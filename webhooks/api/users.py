"""Users of the dashboard: made, changed, turned off."""

from __future__ import annotations

from flask import Response

from pipeline import users
from webhooks.access import must_keep_a_door, principal
from webhooks.api import people
from webhooks.api.blueprints import answer, resource
from webhooks.api.people import NewUserBody, User, UserBody, UserPath, Users
from webhooks.context import here

blueprint = resource("users", "Who may come in: people who log in to the dashboard")


@blueprint.get("/users", responses={200: Users})
def listing() -> Response:
    """List users by name, those who were turned off too"""
    return answer(Users(users=[people.user(row) for row in users.all_of_them(here().database)]))


@blueprint.post("/users", responses={201: User})
def create(body: NewUserBody) -> Response:
    """Make a user"""
    must_keep_a_door(body.role, body.inboxes)
    row = users.add(here().database, body.name, body.password, body.role, inboxes=body.inboxes, actor=principal().actor)
    return answer(people.user(row), 201, Location=f"/v1/users/{row.name}")


@blueprint.get("/users/<string:name>", responses={200: User})
def one(path: UserPath) -> Response:
    """One user"""
    return answer(people.user(users.get(here().database, path.name)))


@blueprint.patch("/users/<string:name>", responses={200: User})
def change(path: UserPath, body: UserBody) -> Response:
    """Give a user another role, other inboxes or another password, or turn them off or on; what is left out stays

    Every session of theirs is over. Where one of these cannot be, nothing is changed.
    """
    db, actor = here().database, principal().actor
    users.get(db, path.name)  # whoever is not there is 404, whatever else is wrong
    row = users.change(db, path.name, role=body.role, inboxes=body.inboxes, password=body.password, on=body.enabled, actor=actor)
    return answer(people.user(row))


@blueprint.post("/users/<string:name>/logout", responses={200: User})
def end_sessions(path: UserPath) -> Response:
    """Log a user out wherever they are logged in"""
    return answer(people.user(users.end_sessions(here().database, path.name, actor=principal().actor)))
