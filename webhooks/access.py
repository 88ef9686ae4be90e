"""Who asks, and what they may: keys, sessions, passes of the command line; roles and inboxes; requests that other sites send.

A server that listens on this machine only, and for which nobody ever made a key or a user, is open: whoever reaches it is
its administrator. Everything else is closed.
"""

from __future__ import annotations

import logging
from ipaddress import ip_address
from urllib.parse import urlsplit

from flask import Flask, current_app, g, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from pipeline import keys, passes
from pipeline.access import AccessError, Principal, Role
from pipeline.settings import Settings
from webhooks import headers, limits, roles, sessions
from webhooks.context import Context, here
from webhooks.problems import MACHINES, Problem
from webhooks.sessions import BOOTSTRAP, same

SAFE = ("GET", "HEAD", "OPTIONS")
ANYBODY = Principal("anonymous", Role.ADMIN)
"""Whoever asks an open server."""
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip")
log = logging.getLogger(__name__)


def install(app: Flask, settings: Settings) -> None:
    """Guard every request of the application, and put the security headers on every answer."""
    app.before_request(_identify)
    limits.install(app, settings, door="dashboard.log_in", inner_door="dashboard.change_password")
    app.before_request(_guard)
    app.after_request(headers.put_on)
    app.jinja_env.globals.update(csrf_token=sessions.csrf_token, may=may)


def principal() -> Principal:
    """Who asks, and what they may. Raises Problem 401 where nobody has said who they are."""
    found: Principal | None = g.get("principal")
    if found is None:
        raise Problem(401, "Nobody has said who they are.", {"WWW-Authenticate": "Bearer"})
    return found


def may(endpoint: str) -> bool:
    """Whether whoever asks may use a route: for what pages show."""
    who: Principal | None = g.get("principal")
    return endpoint in roles.OPEN or (who is not None and why_not(who, endpoint) is None)


def why_not(who: Principal, endpoint: str) -> str | None:
    """None if somebody may use a route; else why not, in one sentence."""
    role = roles.needed(endpoint)
    if not who.role.includes(role):
        return f"That takes the role {role.value}, and yours is {who.role.value}."
    if who.inboxes and endpoint not in roles.BY_INBOX:
        return "That concerns the whole server, and you are bound to some of its inboxes."
    return None


def bearer() -> str:
    """The token of `Authorization: Bearer …`, or an empty string."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def is_open(context: Context) -> bool:
    """Whether whoever reaches this server may do everything: nobody is known to it, and it is this machine's own."""
    return at_home(context.settings) and context.settings.api_key is None and not keys.anybody(context.database)


def at_home(settings: Settings) -> bool:
    """Whether a server is for this machine only: by the address it listens on, and by the one it is known under."""
    public = urlsplit(settings.public_url).hostname if settings.public_url else "localhost"
    return _loopback(settings.web_host) and _loopback(public or "")


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _identify() -> None:
    g.principal = None
    if request.endpoint not in roles.OPEN | roles.OWN_TOKEN:
        g.principal = _known(here())


def _known(context: Context) -> Principal | None:
    if token := bearer():
        return _of_token(context, token)
    # A session is good for pages and for reading; what changes something by the API wants a key.
    if sessions.begun() and (request.blueprint == "dashboard" or request.method in SAFE) and (who := sessions.known()) is not None:
        return who
    return let_in_unknown(context)


def _of_token(context: Context, token: str) -> Principal | None:
    key = context.settings.api_key
    if key is not None and same(token, key.get_secret_value()):
        return BOOTSTRAP
    if (who := passes.known(context.settings, token)) is not None:
        return who
    if (who := keys.known(context.database, token)) is not None:
        return who
    return let_in_unknown(context)


def let_in_unknown(context: Context) -> Principal | None:
    """Whoever asks an open server, from this machine and by its own name: not through a proxy, nor a name that was rebound."""
    if any(name in request.headers for name in FORWARDED):
        return None
    if current_app.config["TRUSTED_HOSTS"] is None and not _loopback(urlsplit(f"//{request.host}").hostname or ""):
        return None
    return ANYBODY if is_open(context) else None


def _guard() -> AnyResponse | None:
    if request.endpoint in roles.OWN_TOKEN:
        return None
    if request.method not in SAFE:
        _refuse_other_sites()
    if request.endpoint not in roles.OPEN:
        who = g.principal
        if who is None:
            return _ask_who()
        if request.endpoint is not None and (why := why_not(who, request.endpoint)) is not None:
            log.info("%s may not use %s: %s", who.actor, request.endpoint, why)
            raise Problem(403, why)
    if request.blueprint == "dashboard" and request.method not in SAFE and not sessions.has_csrf_token():
        raise Problem(403, "The form was too old or not ours: reload the page and try again.")
    return None


def _ask_who() -> AnyResponse:
    if request.path.startswith(MACHINES) or request.method not in SAFE or request.headers.get("X-Fragment"):
        said = "This server asks for an API key: send it as `Authorization: Bearer …`."
        if bearer():
            said = "The API key is wrong, has expired or was revoked."
        elif not keyed():
            said = "Nobody can come in yet: set UNMASK_API_KEY, or make a key with `unmask keys add`."
        raise Problem(401, said, {"WWW-Authenticate": "Bearer"})
    return redirect(url_for("dashboard.login", next=request.full_path.rstrip("?")))


def keyed() -> bool:
    """Whether there is anything at all to come in with."""
    context = here()
    return context.settings.api_key is not None or keys.anybody(context.database)


def must_keep_a_door(role: Role, inboxes: list[str]) -> None:
    """Refuse to close an open server behind somebody who could not open it again. Raises AccessError."""
    if principal() == ANYBODY and (role is not Role.ADMIN or inboxes):
        raise AccessError("The first one to be known must be an admin of the whole server: from then on nobody else comes in.")


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
