"""The browser's session: whom it belongs to, and the token that its forms carry.

It lies in a signed cookie and names a user with a generation, or a key with a proof that it was shown. Whoever is behind
it is looked up anew at every request, so that a password that changed or a key that was revoked ends it at once.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time

from flask import request, session

from pipeline import keys, users
from pipeline.access import Principal, Role
from webhooks.context import here

BOOTSTRAP = Principal("key:bootstrap", Role.ADMIN)
"""Whoever has the key of the settings."""
LIFE_S = 7 * 86_400.0
"""A session ends so long after its login, however much it is used."""


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that tells nothing."""
    return hmac.compare_digest(one.encode(), other.encode())


def begin(key: str) -> Principal | None:
    """Begin a session with an API key. None: it opens nothing."""
    context = here()
    expected = context.settings.api_key
    if expected is not None and same(key, expected.get_secret_value()):
        _start({"key": "bootstrap", "proof": _fingerprint(key)})
        return BOOTSTRAP
    if (who := keys.known(context.database, key)) is not None:
        _start({"key": who.actor.removeprefix("key:"), "proof": keys.proof_of(key)})
    return who


def begin_as(name: str, generation: int) -> None:
    """Begin a session of a user who has just proved who they are."""
    _start({"user": name, "generation": generation})


def _start(whose: dict[str, str | int]) -> None:
    session.clear()
    session.update(whose | {"since": time.time()})
    session.permanent = True


def end() -> None:
    """Forget it."""
    session.clear()


def begun() -> bool:
    """Whether this browser has a session that it can end."""
    return "key" in session or "user" in session


def user() -> str | None:
    """The name of the user whose session this is; None: a key's, or nobody's."""
    return session.get("user")


def known() -> Principal | None:
    """Whose session this is; None: nobody's, or it is over."""
    context = here()
    if time.time() - float(session.get("since", 0.0)) > LIFE_S:
        return None
    if "user" in session:
        return users.of_session(context.database, str(session["user"]), int(session["generation"]))
    proof = str(session.get("proof", ""))
    if session.get("key") == "bootstrap":
        expected = context.settings.api_key
        return BOOTSTRAP if expected is not None and same(proof, _fingerprint(expected.get_secret_value())) else None
    return keys.of_id(context.database, str(session["key"]), proof) if "key" in session else None


def _fingerprint(key: str) -> str:
    return hashlib.sha256(b"unmask session " + key.encode()).hexdigest()


def csrf_token() -> str:
    """The token that forms of this session carry."""
    if "csrf" not in session:
        session["csrf"] = secrets.token_urlsafe(24)
    return str(session["csrf"])


def has_csrf_token() -> bool:
    """Whether the form that was sent carries it."""
    return "csrf" in session and same(request.form.get("csrf", ""), session["csrf"])
