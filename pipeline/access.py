"""The roles, from the least to the most, and who it is that asks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(str, Enum):
    """What somebody may do; each role may do what those before it may."""

    VIEWER = "viewer"
    """Look: jobs, results, models, trainings."""
    REVIEWER = "reviewer"
    """And say of a face what it is; put images in."""
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
