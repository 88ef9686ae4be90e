"""Who may do what: the API key, the dashboard's login and its CSRF token, and requests that other sites make browsers send."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from urllib.parse import urlsplit

from flask import Flask, Response, g, redirect, request, session, url_for
from werkzeug.wrappers import Response as AnyResponse

from pipeline.access import Principal, Role
from webhooks import roles
from webhooks.context import here
from webhooks.problems import MACHINES, Problem

SAFE = ("GET", "HEAD", "OPTIONS")
ANYBODY = Principal("anonymous", Role.ADMIN)
"""Whoever asks a server that has no key: it listens on this machine only."""
BOOTSTRAP = Principal("key:bootstrap", Role.ADMIN)
"""Whoever has the key of the settings."""
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def install(app: Flask) -> None:
    """Guard every request of the application, and put the security headers on every answer."""
    app.before_request(_guard)
    app.after_request(_with_headers)
    app.jinja_env.globals["csrf_token"] = csrf_token


def bearer() -> str:
    """The token of `Authorization: Bearer …`, or an empty string."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that tells nothing."""
    return hmac.compare_digest(one.encode(), other.encode())


def principal() -> Principal:
    """Who asks, and what they may. Within a request to a route that is not open to everyone; raises Problem 401 elsewhere."""
    found: Principal | None = g.get("principal")
    if found is None:
        raise Problem(401, "Nobody has said who they are.", {"WWW-Authenticate": "Bearer"})
    return found


def _guard() -> AnyResponse | None:
    if request.endpoint in roles.OWN_TOKEN:
        return None
    if request.method not in SAFE:
        _refuse_other_sites()
    if request.endpoint not in roles.OPEN:
        g.principal = _known()
        if g.principal is None:
            if request.path.startswith(MACHINES) or request.method not in SAFE or request.headers.get("X-Fragment"):
                said = "The API key is wrong." if bearer() else "This server asks for its API key: send it as `Authorization: Bearer …`."
                raise Problem(401, said, {"WWW-Authenticate": "Bearer"})
            return redirect(url_for("dashboard.login", next=request.full_path.rstrip("?")))
        if request.endpoint is not None:
            _permit(g.principal, request.endpoint)
    if request.blueprint == "dashboard" and request.method not in SAFE and not _has_csrf_token():
        raise Problem(403, "The form was too old or not ours: reload the page and try again.")
    return None


def _known() -> Principal | None:
    key = here().settings.api_key
    if key is None:
        return ANYBODY
    return BOOTSTRAP if _knows(key.get_secret_value()) else None


def _permit(who: Principal, endpoint: str) -> None:
    role = roles.needed(endpoint)
    if not who.role.includes(role):
        raise Problem(403, f"That takes the role {role.value}, and yours is {who.role.value}.")
    if who.inboxes and endpoint not in roles.BY_INBOX:
        raise Problem(403, "That concerns the whole server, and you are bound to some of its inboxes.")


def _refuse_other_sites() -> None:
    # Without an API key nothing but this keeps a page somewhere on the web from posting to a server on localhost.
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        hosts = (request.host, urlsplit(here().settings.url).netloc)
        foreign = origin is not None and urlsplit(origin).netloc not in hosts
    if foreign:
        raise Problem(403, "Requests that change something are not taken from pages of other sites.")


# -- the dashboard's session


def _fingerprint(key: str) -> str:
    return hashlib.sha256(b"unmask session " + key.encode()).hexdigest()


def _knows(key: str) -> bool:
    if token := bearer():
        return same(token, key)
    # A session is good for pages and for reading; what changes something by the API wants the key itself.
    usable = request.blueprint == "dashboard" or request.method in SAFE
    return usable and same(session.get("key", ""), _fingerprint(key))


def log_in(key: str) -> bool:
    """Remember in the session that this browser knows the API key. False: it does not."""
    expected = here().settings.api_key
    if expected is None or not same(key, expected.get_secret_value()):
        return False
    session.clear()
    session["key"] = _fingerprint(key)
    session.permanent = True
    return True


def log_out() -> None:
    """Forget it."""
    session.clear()


def logged_in() -> bool:
    """Whether this browser has a session that it can end."""
    return "key" in session


def _has_csrf_token() -> bool:
    return "csrf" in session and same(request.form.get("csrf", ""), session["csrf"])


def csrf_token() -> str:
    """The token that forms of this session carry."""
    if "csrf" not in session:
        session["csrf"] = secrets.token_urlsafe(24)
    return str(session["csrf"])


def _with_headers(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    return response
