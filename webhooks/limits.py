"""How often one may ask: every caller, every address that fails to say who it is, and the door where passwords are tried.

Counts are shared by all web processes through the broker. While it is away each process counts by itself, and the log says
so; nobody is kept out because of it.
"""

from __future__ import annotations

import math
import time
from typing import Any

from flask import Flask, Response, g, request
from flask_limiter import ApplicationLimit, Limiter, RateLimitExceeded

from pipeline.settings import Settings
from webhooks import roles
from webhooks.problems import respond

UNKNOWN = "300 per minute"
"""Requests of one address that fail to say who asks. Known callers of that address are not held to it."""
PATIENCE_S = 1
"""Seconds that the broker may take to count."""


def install(app: Flask, settings: Settings, *, door: str, inner_door: str) -> None:
    """Count every request of the application; has to run after the caller is known, and before anything is done for them.

    `door`: the endpoint where passwords are tried; every try counts, by address and by name. `inner_door`: where those who
    are in already show theirs again; every try counts, by who it is.
    """
    everybody = [ApplicationLimit(UNKNOWN, key_function=address, scope="unknown", exempt_when=_known, deduct_when=_unknown)]
    if settings.rate_limit:
        everybody.append(ApplicationLimit(settings.rate_limit, key_function=caller, scope="caller", exempt_when=_not_counted))
    redis = settings.broker_url.startswith(("redis://", "rediss://"))
    limiter = Limiter(
        key_func=address,
        storage_uri=settings.broker_url if redis else "memory://",
        storage_options={"socket_timeout": PATIENCE_S, "socket_connect_timeout": PATIENCE_S} if redis else {},
        strategy="fixed-window",
        key_prefix="unmask",
        in_memory_fallback_enabled=True,
        application_limits=[*everybody],
    )
    limiter.init_app(app)
    view: Any = app.view_functions[door]
    for who in (address, _name):
        view = limiter.limit(settings.login_limit, key_func=who, scope=who.__name__)(view)
    app.view_functions[door] = view
    again: Any = app.view_functions[inner_door]
    app.view_functions[inner_door] = limiter.limit(settings.login_limit, key_func=caller, scope="password")(again)
    app.register_error_handler(RateLimitExceeded, lambda error: _too_often(limiter, error))


def _too_often(limiter: Limiter, error: RateLimitExceeded) -> Response:
    broken = limiter.current_limit
    wait = 1 if broken is None else max(1, math.ceil(broken.reset_at - time.time()))
    return respond(429, f"That was too often: {error.description} is the most.", {"Retry-After": str(wait)})


def caller() -> str:
    """Who is counted: whoever asks, else the address."""
    who = g.get("principal")
    return address() if who is None else who.actor


def address() -> str:
    """Where a request comes from."""
    return request.remote_addr or "nowhere"


def _name() -> str:
    return request.form.get("name", "").strip().lower()[:64] or "by key from " + address()


def _known() -> bool:
    return g.get("principal") is not None or request.endpoint in roles.OPEN | roles.OWN_TOKEN


def _not_counted() -> bool:
    who = g.get("principal")  # an open server is this machine's own, and counts nobody
    return who is None or who.actor == "anonymous"


def _unknown(response: Response) -> bool:
    return response.status_code == 401
