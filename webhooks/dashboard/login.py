"""The door: a user's name and password, or an API key."""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from pipeline import audit, users
from webhooks import access, sessions
from webhooks.context import here
from webhooks.dashboard.blueprint import blueprint

UNKNOWN = "-"
"""Whose failed attempt it was, where the name could be anything: a password typed into the wrong field must not be kept."""


@blueprint.get("/login")
def login() -> str | AnyResponse:
    """The form."""
    if access.let_in_unknown(here()) is not None:
        return redirect(url_for("dashboard.index"))
    return _form("" if access.keyed() else "Nobody can come in yet: set UNMASK_API_KEY, or run `unmask users add` on the server.")


def _form(error: str) -> str:
    return render_template("login.html", error=error, next=request.values.get("next", ""), name=request.form.get("name", "")[:64])


@blueprint.post("/login")
def log_in() -> AnyResponse | tuple[str, int]:
    """Check the password or the key, and go where one wanted to go."""
    if "key" in request.form:
        came = sessions.begin(request.form["key"].strip())
        return _welcome(came.actor) if came is not None else _refuse(UNKNOWN, "That is no API key of this server.")
    db = here().database
    name = request.form.get("name", "").strip().lower()
    user = users.authenticated(db, name, request.form.get("password", ""))
    if user is None:
        known = any(row.name == name for row in users.all_of_them(db))
        return _refuse(f"user:{name}" if known else UNKNOWN, "The name or the password is wrong.")
    sessions.begin_as(user.name, user.generation)
    return _welcome(f"user:{user.name}")


def _welcome(actor: str) -> AnyResponse:
    with here().database.write() as session:
        audit.note(session, actor, "session.begin", actor, address=request.remote_addr)
    return redirect(_inside(request.form.get("next", "")), 303)


def _refuse(subject: str, sentence: str) -> tuple[str, int]:
    with here().database.write() as session:
        audit.note(session, "anonymous", "session.refuse", subject, address=request.remote_addr)
    return _form(sentence), 401


@blueprint.post("/logout")
def log_out() -> AnyResponse:
    """Forget the session."""
    sessions.end()
    return redirect(url_for("dashboard.login"), 303)


def _inside(path: str) -> str:
    # Only ever a page of ours: `//host` and `\\host` lead elsewhere.
    parts = urlsplit(path)
    safe = path.startswith("/") and not path.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc and "\\" not in path
    return path if safe else url_for("dashboard.index")
