"""Two workers never hold one card: not side by side, not after a kill, not when a lease has run out unseen."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import select, update

from pipeline import cards
from pipeline.cards import CardError, CardLease
from pipeline.database import Database
from pipeline.tables.training import CardLeaseRow
from tests.fixtures.gaudi import HERE, ROOT


def take(db: Database, locks: Path, text: str = "0,1", holder: str = "a", lease_s: float = 60) -> CardLease:
    return cards.acquire(db, cards.group("hpu", text), holder=holder, training="t", lease_s=lease_s, locks=locks, machine="m")


def run_out(db: Database, name: str = "m/hpu/0") -> None:
    """As if the lease's time had passed."""
    with db.write() as session:
        session.execute(update(CardLeaseRow).where(CardLeaseRow.card == name).values(lease_until=1.0))


def row(db: Database, name: str = "m/hpu/0") -> CardLeaseRow:
    with db.read() as session:
        return session.execute(select(CardLeaseRow).where(CardLeaseRow.card == name)).scalar_one()


def test_a_card_goes_from_hand_to_hand_with_a_growing_fence(db: Database, tmp_path: Path) -> None:
    for fence in (1, 2, 3):
        lease = take(db, tmp_path, holder=f"worker {fence}")
        assert lease.fences == {"m/hpu/0": fence, "m/hpu/1": fence}
        assert row(db).holder == f"worker {fence}"
        cards.release(db, lease)
        cards.release(db, lease)
        assert (row(db).holder, row(db).lease_until) == ("", None)


@pytest.mark.parametrize(("one", "other"), [("0,1", "1"), ("0", "0,1,2,3"), ("4,5,6,7", "0,1,2,3,4,5,6,7")])
def test_groups_that_share_a_card_are_never_held_at_once(db: Database, tmp_path: Path, one: str, other: str) -> None:
    lease = take(db, tmp_path, one)
    with pytest.raises(CardError, match="in use by another process") as caught:
        take(db, tmp_path, other, "b")
    assert not caught.value.permanent
    cards.release(db, lease)
    cards.release(db, take(db, tmp_path, other, "b"))


def test_groups_apart_are_held_side_by_side(db: Database, tmp_path: Path) -> None:
    for lease in [take(db, tmp_path, text, text) for text in ("0,1", "2", "3", "4,5,6,7")]:
        cards.release(db, lease)


def test_a_refused_taking_leaves_nothing_taken(db: Database, tmp_path: Path) -> None:
    lease = take(db, tmp_path, "1")
    with pytest.raises(CardError):
        take(db, tmp_path, "0,1", "b")
    cards.release(db, take(db, tmp_path, "0", "c"))
    cards.release(db, lease)


def test_where_the_lock_files_differ_the_database_still_refuses(db: Database, tmp_path: Path) -> None:
    """Containers of one machine that share no folder."""
    lease = take(db, tmp_path / "one")
    with pytest.raises(CardError, match="held by a: its lease has not ended") as caught:
        take(db, tmp_path / "other", "1", "b")
    assert not caught.value.permanent
    cards.release(db, lease)


def test_a_holder_whose_lease_ran_out_publishes_nothing(db: Database, tmp_path: Path) -> None:
    slow = take(db, tmp_path / "one")
    cards.renew(db, slow, 60)
    run_out(db)
    quick = take(db, tmp_path / "other", "0", "b")

    with pytest.raises(CardError, match="was taken by somebody else"), db.write() as session:
        cards.check(session, slow)
    with pytest.raises(CardError, match="was taken by somebody else"):
        cards.renew(db, slow, 60)
    with db.write() as session:
        cards.check(session, quick)
    cards.release(db, slow)
    assert row(db).holder == "b"
    cards.release(db, quick)


def test_a_lease_that_ran_out_but_that_nobody_took_is_still_good(db: Database, tmp_path: Path) -> None:
    lease = take(db, tmp_path)
    run_out(db)
    cards.renew(db, lease, 60)
    with db.write() as session:
        cards.check(session, lease)
    cards.release(db, lease)


def test_of_many_at_once_one_gets_it(db: Database, tmp_path: Path) -> None:
    """Through the database alone: everyone has a lock folder of his own."""
    start = threading.Barrier(8)

    def try_it(number: int) -> CardLease | None:
        start.wait()
        try:
            return take(db, tmp_path / str(number), random.Random(number).choice(["0", "0,1", "0,1,2,3"]), f"w{number}")
        except CardError:
            return None

    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            got = [lease for lease in pool.map(try_it, range(8)) if lease]
        assert len(got) == 1
        cards.release(db, got[0])


def test_a_folder_that_cannot_be_made_is_one_sentence(db: Database, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CardError, match="lock files of the cards cannot be made") as caught:
        take(db, tmp_path / "file" / "locks")
    assert caught.value.permanent


@pytest.fixture
def start(db_url: str, tmp_path: Path) -> Iterator[Callable[[str, str], subprocess.Popen[str]]]:
    """Start a holder in a process of its own: (group, name)."""
    with ExitStack() as stack:

        def started(text: str, name: str) -> subprocess.Popen[str]:
            command = [sys.executable, str(HERE / "holder.py"), db_url, str(tmp_path / "locks"), text, name]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield started


def test_a_killed_holders_card_is_free_when_its_trainer_is_gone_too(
    db: Database, start: Callable[[str, str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    holder = start("0,1", "first")
    assert holder.stdout
    word, fence, trainer = holder.stdout.readline().split()
    assert (word, fence) == ("held", "1")
    # Given a worker that is killed, whose trainer runs on
    holder.kill()
    holder.wait()

    # Then the card is locked, whatever the lease says
    run_out(db, "m/hpu/0")
    run_out(db, "m/hpu/1")
    with pytest.raises(CardError, match="in use by another process"):
        take(db, tmp_path / "locks", "1", "second")

    # And free as soon as the trainer is gone
    os.kill(int(trainer), signal.SIGKILL)
    with (tmp_path / "locks" / "hpu1.lock").open("r+") as file:
        _wait_for_lock(file.fileno())
    lease = take(db, tmp_path / "locks", "1", "second")
    assert lease.fences == {"m/hpu/1": 2}
    cards.release(db, lease)


def test_a_killed_holders_lease_must_end_before_another_takes_the_card(
    db: Database, start: Callable[[str, str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    holder = start("3", "first")
    assert holder.stdout
    trainer = int(holder.stdout.readline().split()[2])
    holder.kill()
    os.kill(trainer, signal.SIGKILL)
    holder.wait()
    with (tmp_path / "locks" / "hpu3.lock").open("r+") as file:
        _wait_for_lock(file.fileno())

    with pytest.raises(CardError, match="held by first"):
        take(db, tmp_path / "locks", "3", "second")
    run_out(db, "m/hpu/3")
    cards.release(db, take(db, tmp_path / "locks", "3", "second"))


def test_a_holder_in_another_process_refuses_and_then_gives_back(
    db: Database, start: Callable[[str, str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    one, other = start("0", "one"), None
    assert one.stdout
    assert one.stdout.readline().startswith("held 1 ")
    other = start("0,1", "other")
    assert other.stdout
    assert other.stdout.readline().startswith("refused Card m/hpu/0 is in use by another process")
    one.communicate()
    assert row(db).holder == ""
    lease = take(db, tmp_path / "locks")
    cards.release(db, lease)


def _wait_for_lock(descriptor: int) -> None:
    """Until everybody else has let go of a lock file: the kernel says when."""
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX)
    fcntl.flock(descriptor, fcntl.LOCK_UN)
