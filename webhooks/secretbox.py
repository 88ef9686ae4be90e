"""Webhook secrets: made, and kept encrypted. Only outbound webhooks look inside.

A secret is `whsec_` and the base64 of 32 random bytes (Standard Webhooks 1.0.0 asks for 24 to 64). At rest it is a Fernet
token under a key derived (HKDF-SHA256) from the setting `secret_key`, so a copy of the database alone signs nothing.
"""

from __future__ import annotations

import base64
import secrets
from functools import cache

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pipeline.settings import Settings


class SecretError(Exception):
    """A secret cannot be sealed or opened; the message says which setting to look at."""

    permanent = True


def new_secret() -> str:
    """A fresh signing secret."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def seal(settings: Settings, secret: str) -> str:
    """The secret as it is stored. Raises SecretError without a secret key."""
    return _box(settings).encrypt(secret.encode()).decode()


def unseal(settings: Settings, sealed: str) -> str:
    """The secret that was sealed. Raises SecretError without the secret key it was sealed with."""
    try:
        return _box(settings).decrypt(sealed.encode()).decode()
    except InvalidToken as error:
        raise SecretError("The endpoint's secret was stored under another UNMASK_SECRET_KEY: rotate it, or restore the key.") from error


def opens(settings: Settings, sealed: str) -> bool:
    """Whether `unseal` would return the secret: the secret key is the one it was sealed with."""
    try:
        unseal(settings, sealed)
    except SecretError:
        return False
    return True


def _box(settings: Settings) -> Fernet:
    if settings.secret_key is None:
        raise SecretError("UNMASK_SECRET_KEY is not set, and webhook secrets are not stored without it.")
    return _fernet(settings.secret_key.get_secret_value())


@cache
def _fernet(key: str) -> Fernet:
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"unmask webhook secrets").derive(key.encode())
    return Fernet(base64.urlsafe_b64encode(derived))
