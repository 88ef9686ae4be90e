"""The page that asks for the API key, where the server has one."""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from webhooks import access
from webhooks.context import here
from webhooks.dashboard.blueprint import blueprint


@blueprint.get("/login")
def login() -> str | AnyResponse:
    """The form."""
    if here().settings.api_key is None:
        return redirect(url_for("dashboard.index"))
    return render_template("login.html", error="", next=request.args.get("next", ""))


@blueprint.post("/login")
def log_in() -> AnyResponse | tuple[str, int]:
    """Check the key, and go where one wanted to go."""
    wanted = request.form.get("next", "")
    if access.log_in(request.form.get("key", "").strip()):
        return redirect(_inside(wanted), 303)
    return render_template("login.html", error="That is not this server's API key.", next=wanted), 401


@blueprint.post("/logout")
def log_out() -> AnyResponse:
    """Forget the session."""
    access.log_out()
    return redirect(url_for("dashboard.login"), 303)


def _inside(path: str) -> str:
    # Only ever a page of ours: `//host` and `\\host` lead elsewhere.
    parts = urlsplit(path)
    safe = path.startswith("/") and not path.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc and "\\" not in path
    return path if safe else url_for("dashboard.index")
