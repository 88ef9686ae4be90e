"""The roles, from the least to the most, and who it is that asks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from sqlalchemy import select
from sqlalchemy.orm import Session

from pipeline.tables.inboxes import InboxRow

DEFAULT_INBOX = "default"


class AccessError(Exception):
    """Somebody cannot be let in, or not so; one sentence. `missing`: there is no such key or user."""

    permanent = True

    def __init__(self, sentence: str, *, missing: bool = False) -> None:
        super().__init__(sentence)
        self.missing = missing


class Role(str, Enum):
    """What somebody may do; each role may do what those before it may."""

    VIEWER = "viewer"
    """Look: jobs, results, models, trainings. And say of a face what it is, which counts where two agree."""
    REVIEWER = "reviewer"
    """And settle alone what a face is; put images in."""
    OPERATOR = "operator"
    """And act: retry, cancel, pause, endpoints, trainings, schedules, promote, roll back."""
    ADMIN = "admin"
    """And decide who may come in: keys, users, inboxes; read the audit."""

    def includes(self, other: Role) -> bool:
        """Whether this role may do what `other` may."""
        order = tuple(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True)
class Principal:
    """Who asks. `actor` is as the audit has it: `user:NAME`, `key:ID`, `cli`. `inboxes` empty: all of them."""

    actor: str
    role: Role
    inboxes: frozenset[str] = frozenset()

    def may_see(self, inbox: str) -> bool:
        """Whether jobs of that inbox are theirs to see."""
        return not self.inboxes or inbox in self.inboxes


def role_named(name: str) -> Role:
    """The role of that name. Raises AccessError, naming them all."""
    try:
        return Role(name)
    except ValueError:
        raise AccessError(f"There is no role {name!r}: they are {', '.join(role.value for role in Role)}.") from None


def existing(session: Session, inboxes: Iterable[str]) -> list[str]:
    """The names of inboxes, sorted, each once. Raises AccessError if one does not exist: a slip would bind somebody to nothing."""
    wanted = sorted(set(inboxes))
    there = {DEFAULT_INBOX, *session.scalars(select(InboxRow.name).where(InboxRow.name.in_(wanted)))}
    if unknown := [name for name in wanted if name not in there]:
        raise AccessError(f"There is no inbox {unknown[0]!r}.")
    return wanted
