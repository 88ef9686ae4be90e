"""Signatures of model versions: HMAC-SHA256 over name, version and the hash of every file, by a key that the database does not hold.

The key is derived (HKDF-SHA256) from the setting `secret_key`. An installation without one makes a key file in its data
directory at the first signature, which does for one machine.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pipeline.card import ModelError
from pipeline.settings import Settings

KEY_FILE = "model.key"
_PURPOSE = b"unmask model versions 1"


def sign(settings: Settings, name: str, version: str, files: Mapping[str, str]) -> str:
    """The signature of a version whose files have these sha256. Raises ModelError where no key can be kept."""
    return _signature(_key(settings, make=True), name, version, files)


def valid(settings: Settings, name: str, version: str, files: Mapping[str, str], signature: str | None) -> bool:
    """Whether this installation signed exactly these files under this name and version. Raises ModelError where its key is not here."""
    if not signature:
        return False
    return hmac.compare_digest(signature.encode(), _signature(_key(settings, make=False), name, version, files).encode())


def check(settings: Settings, name: str, version: str, files: Mapping[str, str], signature: str | None) -> None:
    """Raise ModelError unless this installation signed exactly these files under this name and version."""
    what = f"The model {name} {version}"
    if not signature:
        raise ModelError(f"{what} is not signed, and is not used: `unmask models sign {version}` signs what you trust.")
    if not valid(settings, name, version, files, signature):
        raise ModelError(
            f"{what} is not used: its signature is not this installation's. It was altered in the registry, or UNMASK_SECRET_KEY "
            f"has changed; then `unmask models sign {version}` signs what you trust."
        )


def check_before_use(settings: Settings, name: str, version: str, files: Mapping[str, str], signature: str | None) -> None:
    """Raise ModelError for a version that every worker would refuse: it must not become champion, for a fresh worker has no other."""
    if not valid(settings, name, version, files, signature):
        what = "has a signature that is not this installation's" if signature else "has no signature"
        raise ModelError(f"{name} {version} {what}, and no worker would use it: `unmask models sign {version}` first.")


def _signature(key: bytes, name: str, version: str, files: Mapping[str, str]) -> str:
    told = json.dumps([name, version, sorted(files.items())], separators=(",", ":"), ensure_ascii=True)
    return "v1," + hmac.new(key, told.encode(), "sha256").hexdigest()


def _key(settings: Settings, *, make: bool) -> bytes:
    if settings.secret_key is not None:
        material = settings.secret_key.get_secret_value().encode()
    else:
        material = _kept(settings.data_dir / KEY_FILE, make=make)
    return HKDF(SHA256(), 32, None, _PURPOSE).derive(material)


def _kept(path: Path, *, make: bool) -> bytes:
    if make:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(secrets.token_hex(32).encode())
                with suppress(FileExistsError):  # another process was faster: its key counts
                    os.link(temporary, path)
                temporary.unlink()
        except OSError as error:
            raise ModelError(f"No signing key can be kept at {path}: {error.strerror}. Set UNMASK_SECRET_KEY.", permanent=False) from error
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"There is no key to check signatures of models with: set UNMASK_SECRET_KEY, the same on every machine ({path} is not there).",
            permanent=False,
        ) from error
