"""What goes over the wire about keys, users and deeds, and how rows become it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from pipeline.access import Principal, Role
from pipeline.tables.access import ApiKeyRow, AuditRow, UserRow
from pipeline.users import LONGEST, SHORTEST
from webhooks.api.schemas import Strict
from webhooks.api.shapes import moment

BOUND = "Names of the inboxes it is for; empty: the whole server"


class KeyPath(BaseModel):
    id: str = Field(description="The key's id, the part between `um_` and the next `_`", max_length=64)


class UserPath(BaseModel):
    name: str = Field(max_length=64)


class NewKeyBody(Strict):
    name: str = Field(description="What it is for", min_length=1, max_length=255)
    role: Role
    inboxes: list[str] = Field([], description=BOUND, max_length=100)
    days: float | None = Field(None, description="How long it is good for; null: until it is revoked", ge=1 / 24, le=36_500)


class NewUserBody(Strict):
    name: str = Field(description="a-z, 0-9 and . _ @ + -", min_length=1, max_length=64)
    password: str = Field(min_length=SHORTEST, max_length=LONGEST)
    role: Role
    inboxes: list[str] = Field([], description=BOUND, max_length=100)


class UserBody(Strict):
    role: Role | None = None
    inboxes: list[str] | None = Field(None, description=BOUND, max_length=100)
    password: str | None = Field(None, min_length=SHORTEST, max_length=LONGEST)
    enabled: bool | None = Field(None, description="False: they cannot log in, and are out at once")


class AuditQuery(Strict):
    actor: str | None = Field(None, description="`user:NAME`, `key:ID`, `cli`, `anonymous`, `schedule:NAME` or `system`", max_length=255)
    action: str | None = Field(None, description="Such as `key.add`, or the kind before the dot: `key`", max_length=64)
    subject: str | None = Field(None, max_length=255)
    before: int | None = Field(None, description="`next` of the page before", ge=0, lt=2**31)
    limit: int = Field(50, ge=1, le=500)


class Key(BaseModel):
    id: str
    name: str
    role: Role
    inboxes: list[str] = Field(description=BOUND)
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None = Field(description="To the minute")


class NewKey(Key):
    key: str = Field(description="The key itself; shown this once")


class Keys(BaseModel):
    keys: list[Key]


class User(BaseModel):
    name: str
    role: Role
    inboxes: list[str] = Field(description=BOUND)
    created_at: str
    disabled_at: str | None


class Users(BaseModel):
    users: list[User]


class Deed(BaseModel):
    id: int
    at: str
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


class Audit(BaseModel):
    deeds: list[Deed]
    next: int | None = Field(description="Pass as `before` for the next page; null: there is none")


class Me(BaseModel):
    actor: str
    role: Role
    inboxes: list[str] = Field(description=BOUND)


def key(row: ApiKeyRow) -> Key:
    """A key, without its hash."""
    times = {name: moment(getattr(row, name)) for name in ("created_at", "expires_at", "revoked_at", "last_used_at")}
    return Key.model_validate({"id": row.id, "name": row.name, "role": row.role, "inboxes": row.inboxes, **times})


def user(row: UserRow) -> User:
    """A user, without their password's hash."""
    times = {"created_at": moment(row.created_at), "disabled_at": moment(row.disabled_at)}
    return User.model_validate({"name": row.name, "role": row.role, "inboxes": row.inboxes, **times})


def deed(row: AuditRow) -> Deed:
    """What somebody did."""
    return Deed(id=row.id, at=moment(row.at), actor=row.actor, action=row.action, subject=row.subject, detail=row.detail)


def me(who: Principal) -> Me:
    """Whoever asks."""
    return Me(actor=who.actor, role=who.role, inboxes=sorted(who.inboxes))
