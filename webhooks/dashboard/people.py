"""Who may come in: keys, users, the audit, and one's own account."""

from __future__ import annotations

from collections.abc import Sequence

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from pipeline import audit, inboxes, keys, users
from pipeline.access import AccessError, Role, role_named
from webhooks import access, sessions
from webhooks.access import must_keep_a_door, principal
from webhooks.context import here
from webhooks.dashboard.blueprint import blueprint
from webhooks.dashboard.words import iso
from webhooks.problems import Problem

PAGE = 60
ROLES = {
    Role.VIEWER: "looks at jobs, results and models, and says of a face what it is, which counts where two agree",
    Role.REVIEWER: "also settles alone what a face is, and puts images in",
    Role.OPERATOR: "also retries, cancels, pauses, promotes; webhooks",
    Role.ADMIN: "also decides who may come in, and reads the audit",
}
DURATIONS = {"": "until it is revoked", "1": "a day", "30": "30 days", "90": "90 days", "365": "a year"}


def _inbox_names() -> list[str]:
    context = here()
    return [inbox.name for inbox in inboxes.directory(context.settings, context.database).inboxes]


def _chosen() -> tuple[Role, list[str]]:
    return role_named(request.form.get("role", "")), [name for name in request.form.getlist("inboxes") if name]


# -- keys


@blueprint.get("/keys")
def key_list() -> str:
    """Every key, and a form for a new one."""
    return _keys()


def _keys(error: str = "") -> str:
    context = here()
    with context.database.read() as session:
        at = audit.clock(session)
    shown = {"rows": keys.all_of_them(context.database), "at": at, "open": access.is_open(context), "error": error}
    return render_template("keys.html", **shown, roles=ROLES, durations=DURATIONS, inboxes=_inbox_names(), form=request.form)


@blueprint.post("/keys")
def add_key() -> str | tuple[str, int]:
    """Make a key and show it, this once; so no redirect, which would have to carry it."""
    try:
        role, bound = _chosen()
        must_keep_a_door(role, bound)
        days = float(request.form["days"]) if request.form.get("days") in DURATIONS and request.form.get("days") else None
        row, key = keys.add(here().database, request.form.get("name", ""), role, inboxes=bound, days=days, actor=principal().actor)
    except AccessError as error:
        return _keys(str(error)), 422
    return render_template("key.html", row=row, key=key)


@blueprint.post("/keys/<key_id>/revoke")
def revoke_key(key_id: str) -> AnyResponse:
    """Let a key open nothing any more."""
    keys.revoke(here().database, key_id, actor=principal().actor)
    return redirect(url_for("dashboard.key_list"), 303)


# -- users


@blueprint.get("/users")
def user_list() -> str:
    """Every user, and a form for a new one."""
    return _users()


def _users(error: str = "") -> str:
    context = here()
    shown = {"rows": users.all_of_them(context.database), "me": sessions.user(), "open": access.is_open(context), "error": error}
    return render_template("users.html", **shown, roles=ROLES, inboxes=_inbox_names(), form=request.form)


@blueprint.post("/users")
def add_user() -> AnyResponse | tuple[str, int]:
    """Make a user."""
    try:
        role, bound = _chosen()
        must_keep_a_door(role, bound)
        name = request.form.get("name", "").strip().lower()
        users.add(here().database, name, request.form.get("password", ""), role, inboxes=bound, actor=principal().actor)
    except AccessError as error:
        return _users(str(error)), 422
    return redirect(url_for("dashboard.user_list"), 303)


@blueprint.get("/users/<name>")
def user(name: str) -> str:
    """One user, and forms to change them."""
    return _user(name)


def _user(name: str, error: str = "") -> str:
    row = users.get(here().database, name)
    deeds, _ = audit.page(here().database, actor=f"user:{name}", limit=10)
    shown = {"row": row, "deeds": deeds, "own": sessions.user() == name, "error": error}
    return render_template("user.html", **shown, roles=ROLES, inboxes=_inbox_names())


@blueprint.post("/users/<name>/change")
def change_user(name: str) -> AnyResponse | tuple[str, int]:
    """Let a user do more or less."""
    try:
        role, bound = _chosen()
        _not_oneself(name)
        users.change(here().database, name, role=role, inboxes=bound, actor=principal().actor)
    except AccessError as error:
        return _user(name, str(error)), 422
    return redirect(url_for("dashboard.user", name=name), 303)


@blueprint.post("/users/<name>/password")
def set_user_password(name: str) -> AnyResponse | tuple[str, int]:
    """Give a user another password."""
    try:
        users.set_password(here().database, name, request.form.get("password", ""), actor=principal().actor)
    except AccessError as error:
        return _user(name, str(error)), 422
    return redirect(url_for("dashboard.user", name=name), 303)


@blueprint.post("/users/<name>/<any(enable, disable, logout):what>")
def switch_user(name: str, what: str) -> AnyResponse | tuple[str, int]:
    """Turn a user off or on, or log them out everywhere."""
    db, actor = here().database, principal().actor
    try:
        if what == "logout":
            users.end_sessions(db, name, actor=actor)
        else:
            _not_oneself(name)
            users.switch(db, name, on=what == "enable", actor=actor)
    except AccessError as error:
        return _user(name, str(error)), 422
    return redirect(url_for("dashboard.user", name=name), 303)


def _not_oneself(name: str) -> None:
    if sessions.user() == name:
        raise AccessError("Nobody changes what they may do themselves: another admin does, or the command line.")


# -- one's own account


@blueprint.get("/account")
def account() -> str:
    """Who one is, and a form for another password."""
    return _account()


def _account(error: str = "", said: str = "") -> str:
    return render_template("account.html", who=principal(), user=sessions.user(), roles=ROLES, error=error, said=said)


@blueprint.post("/account/password")
def change_password() -> str | tuple[str, int]:
    """Give oneself another password; this session goes on, all others are over."""
    name = sessions.user()
    if name is None:
        raise Problem(409, "Only a user who has logged in by name has a password.")
    db = here().database
    if users.authenticated(db, name, request.form.get("old", "")) is None:
        return _account("The present password is wrong."), 422
    try:
        users.set_password(db, name, request.form.get("new", ""), actor=principal().actor)
    except AccessError as error:
        return _account(str(error)), 422
    sessions.begin_as(name, users.get(db, name).generation)
    return _account(said="The password is changed. Whoever was logged in with the old one elsewhere is out.")


# -- the audit


@blueprint.get("/audit")
def audit_log() -> str:
    """Who did what, newest first."""
    narrowed = {name: request.args.get(name, "").strip() for name in ("actor", "action", "subject")}
    before = request.args.get("before", "")
    rows, following = audit.page(
        here().database,
        actor=narrowed["actor"] or None,
        action=narrowed["action"] or None,
        subject=narrowed["subject"] or None,
        before=int(before) if before.isdecimal() and len(before) < 10 else None,
        limit=PAGE,
    )
    query = {name: value for name, value in narrowed.items() if value}
    return render_template("audit.html", rows=rows, following=following, narrowed=narrowed, query=query, details=_details)


def _details(detail: dict[str, object]) -> Sequence[tuple[str, str]]:
    """A deed's detail as words."""
    return [(name.replace("_", " "), _word(value, name)) for name, value in detail.items() if value not in (None, [], "")]


def _word(value: object, name: str = "") -> str:
    if isinstance(value, float) and audit.is_time(name):
        return iso(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_word(part, name)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(str(part) for part in value) or "all"
    return str(value)
