"""API keys: made, shown once, known again by their hash, revoked.

A key is `um_{id}_{secret}`. The id finds its row; the secret has 256 random bits, so that one SHA-256 of the whole is
enough to keep, and nothing is gained by guessing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable

from sqlalchemy import exists, or_, select, update

from pipeline import audit
from pipeline.access import AccessError, Principal, Role, existing
from pipeline.database import Database, now
from pipeline.tables.access import ApiKeyRow, UserRow

PREFIX = "um_"
SHAPE = re.compile(r"um_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
USE_NOTED_S = 60.0
"""A key's last use is written down this often at most."""
DAY_S = 86_400.0


def add(
    db: Database, name: str, role: Role, *, inboxes: Iterable[str] = (), days: float | None = None, actor: str
) -> tuple[ApiKeyRow, str]:
    """Make a key. Returns its row and the key itself, which nobody can show again.

    `inboxes` empty: it may see them all. `days`: how long it is good for, at least one hour; None: until it is revoked.
    Raises AccessError for a name, a duration or an inbox that cannot be.
    """
    name = " ".join(name.split())
    if not name or len(name) > 255:
        raise AccessError("A key needs a name of at most 255 characters, by which people know what it is for.")
    if days is not None and not 1 / 24 <= days <= 36_500:
        raise AccessError("A key is good for one hour at least, and 36,500 days at most.")
    key_id = secrets.token_hex(8)
    key = f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
    with db.write() as session:
        bound = existing(session, inboxes)
        at = session.execute(select(now())).scalar_one()
        row = ApiKeyRow(id=key_id, name=name, hash=_hash(key), role=role.value, inboxes=bound, created_at=at)
        row.expires_at = None if days is None else at + days * DAY_S
        session.add(row)
        audit.note(session, actor, "key.add", f"key:{key_id}", name=name, role=role.value, inboxes=bound, expires_at=row.expires_at)
    return row, key


def known(db: Database, key: str) -> Principal | None:
    """Whose key that is; None: nobody's, or it is revoked or has expired. Notes its use."""
    shape = SHAPE.fullmatch(key)
    if shape is None:
        return None
    row = _good(db, shape[1])
    if row is None or not hmac.compare_digest(row.hash, _hash(key)):
        return None
    return _used(db, row)


def of_id(db: Database, key_id: str, proof: str) -> Principal | None:
    """Whose key that is, by its id and the `proof` that a browser was given when it showed the key; None as with `known`."""
    row = _good(db, key_id)
    if row is None or not hmac.compare_digest(row.hash, proof):
        return None
    return _used(db, row)


def proof_of(key: str) -> str:
    """What a signed session keeps in place of a key."""
    return _hash(key)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _good(db: Database, key_id: str) -> ApiKeyRow | None:
    good = select(ApiKeyRow).where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None))
    with db.read() as session:
        return session.scalars(good.where(or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > now()))).one_or_none()


def _used(db: Database, row: ApiKeyRow) -> Principal:
    stale = or_(ApiKeyRow.last_used_at.is_(None), ApiKeyRow.last_used_at < now() - USE_NOTED_S)
    with db.read() as session:
        unnoted = session.execute(select(exists().where(ApiKeyRow.id == row.id, stale))).scalar_one()
    if unnoted:
        with db.write() as session:
            session.execute(update(ApiKeyRow).where(ApiKeyRow.id == row.id, stale).values(last_used_at=now()))
    return Principal(f"key:{row.id}", Role(row.role), frozenset(row.inboxes))


def all_of_them(db: Database) -> list[ApiKeyRow]:
    """Every key there ever was, newest first."""
    with db.read() as session:
        return list(session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at.desc(), ApiKeyRow.id)))


def get(db: Database, key_id: str) -> ApiKeyRow:
    """The key of that id. Raises AccessError if there is none."""
    with db.read() as session:
        row = session.get(ApiKeyRow, key_id)
    if row is None:
        raise AccessError("There is no key of that id.", missing=True)
    return row


def revoke(db: Database, key_id: str, *, actor: str) -> ApiKeyRow:
    """Let a key open nothing any more, from now on; harmless where it is revoked already. Raises AccessError if there is none."""
    with db.write() as session:
        row = session.get(ApiKeyRow, key_id)
        if row is None:
            raise AccessError("There is no key of that id.", missing=True)
        if row.revoked_at is None:
            row.revoked_at = session.execute(select(now())).scalar_one()
            audit.note(session, actor, "key.revoke", f"key:{key_id}", name=row.name)
        return row


def anybody(db: Database) -> bool:
    """Whether there ever was a key or a user: from then on nobody comes in without being known."""
    with db.read() as session:
        return session.execute(select(or_(exists(select(ApiKeyRow.id)), exists(select(UserRow.name))))).scalar_one()
