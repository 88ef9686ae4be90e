"""Which cards there are to train on, and who has them: one holder a card, however many workers there are.

A card is held twice over. A lock on a file of this machine (`flock`), which the kernel takes back when every process that has
it open is gone, so a trainer that outlives its worker still keeps its card. And a row in the database with a lease and a
fence that grows with every taking: what a holder publishes, it publishes only while the fence is still its own (`check`).

`device=cpu` and `gpu` go the same way with numbered places instead of cards, so nothing else knows the difference.
"""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Update, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pipeline.database import Database, now
from pipeline.groups import DEVICES, LEGAL, CardError, Device, Group, group
from pipeline.tables.training import CardLeaseRow

__all__ = ["DEVICES", "LEGAL", "CardError", "CardLease", "Device", "Group", "acquire", "check", "group", "release", "renew"]


@dataclass(frozen=True)
class CardLease:
    """The right to use a group of cards, until it ends, is released, or somebody else takes one of them.

    Attributes:
        group: which cards.
        holder: the worker that has them.
        training: what it has them for.
        fences: fence of each card's row.
        descriptors: open lock files. Pass them on to the trainer (`pass_fds`), so that its cards are locked while it lives.
    """

    group: Group
    holder: str
    training: str
    fences: Mapping[str, int]
    descriptors: list[int] = field(repr=False)


def acquire(
    database: Database, group: Group, *, holder: str, training: str, lease_s: float, locks: Path, machine: str | None = None
) -> CardLease:
    """Take all cards of a group, or none.

    `holder`: a name that no other process has. `lease_s`: seconds until the lease ends unless renewed. `locks`: folder of
    the lock files, the same for all workers of the machine. `machine`: its name; None: the host's.
    Raises CardError, transient, where somebody else has a card; permanent, where the lock files cannot be made.
    """
    names = _names(group, machine)
    descriptors = _lock(group, names, locks)
    try:
        with database.write() as session:
            fences = {name: _take(session, name, holder, training, lease_s) for name in names}
    except BaseException:
        _close(descriptors)
        raise
    return CardLease(group, holder, training, fences, descriptors)


def renew(database: Database, lease: CardLease, lease_s: float) -> None:
    """Let the lease last `lease_s` seconds from now. Raises CardError when it has been lost."""
    with database.write() as session:
        for name, fence in lease.fences.items():
            held = (CardLeaseRow.card == name, CardLeaseRow.fence == fence, CardLeaseRow.holder == lease.holder)
            if not _changed(session, update(CardLeaseRow).where(*held).values(lease_until=now() + lease_s, changed_at=now())):
                raise _lost(name)


def check(session: Session, lease: CardLease) -> None:
    """Make sure, within the transaction that publishes, that no card has been taken away. Raises CardError, transient.

    The rows stay locked until the transaction ends, so nobody takes a card between this and the commit.
    """
    for name, fence in sorted(lease.fences.items()):
        row = session.execute(select(CardLeaseRow).where(CardLeaseRow.card == name).with_for_update()).scalar_one_or_none()
        if row is None or row.fence != fence or row.holder != lease.holder:
            raise _lost(name)


def release(database: Database, lease: CardLease) -> None:
    """Give the cards back. One that somebody else has meanwhile stays theirs; doing it twice is harmless."""
    try:
        with database.write() as session:
            for name, fence in lease.fences.items():
                held = (CardLeaseRow.card == name, CardLeaseRow.fence == fence, CardLeaseRow.holder == lease.holder)
                session.execute(update(CardLeaseRow).where(*held).values(holder="", training="", lease_until=None, changed_at=now()))
    finally:
        _close(lease.descriptors)


def _names(group: Group, machine: str | None) -> list[str]:
    return sorted(f"{machine or platform.node()}/{group.device}/{module}" for module in group.modules)


def _lock(group: Group, names: Sequence[str], locks: Path) -> list[int]:
    """Lock every card's file, or none. The files stay: one that is deleted could be locked twice."""
    descriptors: list[int] = []
    try:
        locks.mkdir(parents=True, exist_ok=True)
        for module, name in zip(group.modules, names, strict=True):
            descriptors.append(os.open(locks / f"{group.device}{module}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            try:
                fcntl.flock(descriptors[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CardError(f"Card {name} is in use by another process of this machine.", permanent=False) from None
    except OSError as error:
        _close(descriptors)
        raise CardError(f"The lock files of the cards cannot be made in {locks}: {error.strerror}.") from error
    except CardError:
        _close(descriptors)
        raise
    return descriptors


def _close(descriptors: list[int]) -> None:
    """Closing, not unlocking: a trainer that has the files open as well keeps them locked."""
    while descriptors:
        os.close(descriptors.pop())


def _take(session: Session, name: str, holder: str, training: str, lease_s: float) -> int:
    """One card within the transaction; its new fence."""
    values = {"holder": holder, "training": training, "lease_until": now() + lease_s, "changed_at": now()}
    free = or_(CardLeaseRow.lease_until.is_(None), CardLeaseRow.lease_until < now())
    taking = update(CardLeaseRow).where(CardLeaseRow.card == name, free).values(fence=CardLeaseRow.fence + 1, **values)
    if not _changed(session, taking):
        with suppress(IntegrityError), session.begin_nested():
            session.execute(insert(CardLeaseRow).values(card=name, fence=1, **values))
            return 1
        found = session.execute(select(CardLeaseRow).where(CardLeaseRow.card == name)).scalar_one()
        raise CardError(f"Card {name} is held by {found.holder or 'another worker'}: its lease has not ended.", permanent=False)
    return session.execute(select(CardLeaseRow.fence).where(CardLeaseRow.card == name)).scalar_one()


def _changed(session: Session, statement: Update) -> bool:
    """Whether a compare-and-set found its row."""
    return session.scalar(statement.returning(CardLeaseRow.card), execution_options={"synchronize_session": False}) is not None


def _lost(name: str) -> CardError:
    return CardError(f"Card {name} was taken by somebody else meanwhile: its lease had ended.", permanent=False)
