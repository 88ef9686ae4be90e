"""Passes of the command line: whoever holds the installation's secret key asks the web process under its own name, `cli`.

So `unmask endpoints` works on a server that lets in nobody without a key. A pass is good for two minutes.
"""

from __future__ import annotations

import hashlib
import hmac
import time

from pipeline.access import Principal, Role
from pipeline.settings import Settings

CLI = Principal("cli", Role.ADMIN)
GOOD_FOR_S = 120.0
PREFIX = "cli."


def issue(settings: Settings) -> str | None:
    """A pass, as bearer token; None where there is no secret key to make it with."""
    if settings.secret_key is None:
        return None
    moment = f"{time.time():.0f}"
    return f"{PREFIX}{moment}.{_seal(settings.secret_key.get_secret_value(), moment)}"


def known(settings: Settings, token: str) -> Principal | None:
    """Whose pass that is; None: it is none, not ours, or too old."""
    if settings.secret_key is None or not token.startswith(PREFIX):
        return None
    moment, _, seal = token[len(PREFIX) :].partition(".")
    if not moment.isdecimal() or len(moment) > 12 or abs(time.time() - float(moment)) > GOOD_FOR_S:
        return None
    ours = _seal(settings.secret_key.get_secret_value(), moment)
    return CLI if hmac.compare_digest(ours.encode(), seal.encode()) else None


def _seal(secret: str, moment: str) -> str:
    return hmac.new(secret.encode(), f"unmask pass of the command line {moment}".encode(), hashlib.sha256).hexdigest()
