"""People who log in to the dashboard: their passwords (argon2id), roles and sessions.

A user's `generation` grows with everything that changes what they may do; a session that was begun under an older one is over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from threading import BoundedSemaphore

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pipeline import audit
from pipeline.access import AccessError, Principal, Role, existing
from pipeline.database import Database, now
from pipeline.tables.access import UserRow

NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,63}")
SHORTEST, LONGEST = 12, 1000
"""Characters of a password."""
_at_once = BoundedSemaphore(2)
"""Each hash takes 64 MB and a tenth of a second: a crowd at the door must not take the house down."""


@cache
def _hasher() -> PasswordHasher:
    return PasswordHasher(time_cost=3, memory_cost=65_536, parallelism=1)  # RFC 9106's second choice, on one core


@cache
def _nobodys() -> str:
    return _hash("the password of a user that is not there")


def _hash(password: str) -> str:
    with _at_once:
        return _hasher().hash(password)


def _matches(stored: str, password: str) -> bool:
    with _at_once:
        try:
            return _hasher().verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False


def add(db: Database, name: str, password: str, role: Role, *, inboxes: Iterable[str] = (), actor: str) -> UserRow:
    """Make a user. `inboxes` empty: they may see them all. Raises AccessError for a name, a password or an inbox that cannot be."""
    if not NAME.fullmatch(name):
        raise AccessError("A user's name has 1 to 64 of the characters a-z, 0-9 and . _ @ + -, and begins with a letter or digit.")
    hashed = _hash(_good(name, password))
    taken = AccessError(f"There is a user {name} already.")
    with db.write() as session:
        if session.get(UserRow, name) is not None:
            raise taken
        bound = existing(session, inboxes)
        at = session.execute(select(now())).scalar_one()
        row = UserRow(name=name, password=hashed, role=role.value, inboxes=bound, created_at=at, generation=0)
        session.add(row)
        try:
            session.flush()
        except IntegrityError as error:  # at this very moment
            raise taken from error
        audit.note(session, actor, "user.add", f"user:{name}", role=role.value, inboxes=bound)
    return row


def _good(name: str, password: str) -> str:
    if not SHORTEST <= len(password) <= LONGEST:
        raise AccessError(f"A password has {SHORTEST} characters at least, and {LONGEST:,} at most.")
    if len(set(password)) < 4 or name in password.lower():
        raise AccessError("That password is too easy to guess: it repeats itself or holds the user's name.")
    return password


def all_of_them(db: Database) -> list[UserRow]:
    """Every user, by name; those who were turned off, too."""
    with db.read() as session:
        return list(session.scalars(select(UserRow).order_by(UserRow.name)))


def get(db: Database, name: str) -> UserRow:
    """The user of that name. Raises AccessError if there is none."""
    with db.read() as session:
        return _get(session, name)


def _get(session: Session, name: str) -> UserRow:
    row = session.get(UserRow, name)
    if row is None:
        raise AccessError("There is no user of that name.", missing=True)
    return row


def set_password(db: Database, name: str, password: str, *, actor: str) -> None:
    """Give a user another password; every session of theirs is over. Raises AccessError."""
    change(db, name, password=password, actor=actor)


def switch(db: Database, name: str, *, on: bool, actor: str) -> UserRow:
    """Turn a user off, so that they cannot log in and are out at once, or on again. Raises AccessError."""
    return change(db, name, on=on, actor=actor)


def change(
    db: Database,
    name: str,
    *,
    role: Role | None = None,
    inboxes: Iterable[str] | None = None,
    password: str | None = None,
    on: bool | None = None,
    actor: str,
) -> UserRow:
    """Let a user do more or less, give them another password, turn them off or on; what is None stays. Every session of theirs is over.

    All of it or nothing: raises AccessError if any of it cannot be.
    """
    hashed = None if password is None else _hash(_good(name, password))
    with db.write() as session:
        row = _get(session, name)
        if hashed is not None:
            row.password = hashed
            row.generation += 1
            audit.note(session, actor, "user.password", f"user:{name}")
        before = {"role": row.role, "inboxes": list(row.inboxes)}
        row.role = row.role if role is None else role.value
        row.inboxes = row.inboxes if inboxes is None else existing(session, inboxes)
        after = {"role": row.role, "inboxes": list(row.inboxes)}
        if before != after:
            row.generation += 1
            audit.note(session, actor, "user.change", f"user:{name}", before=before, after=after)
        if on is not None and (row.disabled_at is None) != on:
            row.disabled_at = None if on else session.execute(select(now())).scalar_one()
            row.generation += 1
            audit.note(session, actor, "user.enable" if on else "user.disable", f"user:{name}")
        return row


def end_sessions(db: Database, name: str, *, actor: str) -> UserRow:
    """Log a user out wherever they are logged in. Raises AccessError."""
    with db.write() as session:
        row = _get(session, name)
        row.generation += 1
        audit.note(session, actor, "user.logout", f"user:{name}")
        return row


def authenticated(db: Database, name: str, password: str) -> UserRow | None:
    """The user of that name and password; None: wrong, unknown, or turned off. Takes as long whichever it is."""
    nobodys = _nobodys()  # made at the first try, whoever it is for
    with db.read() as session:
        row = session.get(UserRow, name[:64])
    stored = nobodys if row is None else row.password
    if not _matches(stored, password[: LONGEST + 1]) or row is None or row.disabled_at is not None:
        return None
    if _hasher().check_needs_rehash(stored):
        anew = _hash(password)
        with db.write() as session:
            session.execute(update(UserRow).where(UserRow.name == name, UserRow.password == stored).values(password=anew))
    return row


def of_session(db: Database, name: str, generation: int) -> Principal | None:
    """Who a session belongs to that was begun under a generation; None: it is over."""
    with db.read() as session:
        row = session.get(UserRow, name)
    if row is None or row.disabled_at is not None or row.generation != generation:
        return None
    return Principal(f"user:{name}", Role(row.role), frozenset(row.inboxes))
