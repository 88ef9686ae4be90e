"""Keys, users, sessions and the audit, on both databases."""

from __future__ import annotations

import hashlib
import time

import pytest
from argon2 import PasswordHasher
from pydantic import SecretStr
from sqlalchemy import delete, select, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from pipeline import audit, keys, passes, users
from pipeline.access import AccessError, Principal, Role
from pipeline.database import Database
from pipeline.settings import Settings
from pipeline.tables.access import ApiKeyRow, AuditRow, UserRow
from pipeline.tables.inboxes import InboxRow

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords hashed in a moment, where their strength is not what is tested."""
    if "password" not in request.node.name:
        monkeypatch.setattr("pipeline.users._hasher", lambda: PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        users._nobodys.cache_clear()


@pytest.fixture
def inboxes(db: Database) -> None:
    """Two inboxes beside the default one."""
    with db.write() as session:
        for name in ("north", "south"):
            session.add(InboxRow(name=name, bucket=name, created_at=0.0))


def deeds(db: Database) -> list[tuple[str, str, str]]:
    rows, _ = audit.page(db, limit=100)
    return [(row.actor, row.action, row.subject) for row in reversed(rows)]


# -- keys


def test_a_key_is_known_by_its_hash_and_kept_nowhere(db: Database, inboxes: None) -> None:
    row, key = keys.add(db, "  the  scanner ", Role.REVIEWER, inboxes=["south", "north", "south"], actor="cli")

    assert keys.known(db, key) == Principal(f"key:{row.id}", Role.REVIEWER, frozenset({"north", "south"}))
    kept = keys.get(db, row.id)
    assert (kept.name, kept.inboxes) == ("the scanner", ["north", "south"])
    assert kept.hash == hashlib.sha256(key.encode()).hexdigest()
    with db.read() as session:
        everything = repr([vars(one) for one in (*session.scalars(select(ApiKeyRow)), *session.scalars(select(AuditRow)))])
    assert key.split("_", 2)[2] not in everything
    assert deeds(db) == [("cli", "key.add", f"key:{row.id}")]


def test_keys_do_not_resemble_each_other(db: Database) -> None:
    made = [keys.add(db, "one of many", Role.VIEWER, actor="cli")[1] for _ in range(20)]
    assert len({key.split("_", 2)[1] for key in made}) == len({key.split("_", 2)[2] for key in made}) == 20


def test_what_is_not_quite_a_key_opens_nothing(db: Database) -> None:
    row, key = keys.add(db, "a", Role.ADMIN, actor="cli")
    _, other = keys.add(db, "b", Role.ADMIN, actor="cli")
    swapped = f"um_{row.id}_{other.split('_', 2)[2]}"
    last = "A" if key[-1] != "A" else "B"
    for wrong in (
        "",
        "um_",
        key[:-1],
        key + "A",
        key[:-1] + last,
        key.upper(),
        swapped,
        f"um_{row.id}_",
        "um_x_y",
        " " + key,
        row.hash,
        "ü" * 63,
    ):
        assert keys.known(db, wrong) is None, wrong


def test_a_key_ends_when_it_expires_or_is_revoked(db: Database) -> None:
    short, first = keys.add(db, "an hour", Role.VIEWER, days=1 / 24, actor="cli")
    long, second = keys.add(db, "a year", Role.VIEWER, days=365, actor="cli")
    assert keys.known(db, first)
    assert keys.of_id(db, short.id, keys.proof_of(first))

    with db.write() as session:  # an hour later
        session.execute(update(ApiKeyRow).where(ApiKeyRow.id == short.id).values(expires_at=time.time() - 1))
    keys.revoke(db, long.id, actor="user:ann")
    keys.revoke(db, long.id, actor="user:ann")

    assert keys.known(db, first) is keys.known(db, second) is None
    assert keys.of_id(db, short.id, keys.proof_of(first)) is None
    assert deeds(db)[-1] == ("user:ann", "key.revoke", f"key:{long.id}")
    assert len(deeds(db)) == 3, "revoked once"


def test_a_keys_last_use_is_noted_once_a_minute(db: Database) -> None:
    row, key = keys.add(db, "a", Role.VIEWER, actor="cli")
    assert keys.get(db, row.id).last_used_at is None
    keys.known(db, key)
    first = keys.get(db, row.id).last_used_at
    assert first == pytest.approx(time.time(), abs=60)
    keys.known(db, key)
    assert keys.get(db, row.id).last_used_at == first
    with db.write() as session:
        session.execute(update(ApiKeyRow).values(last_used_at=first - keys.USE_NOTED_S - 1))
    keys.known(db, key)
    assert (keys.get(db, row.id).last_used_at or 0) >= first


@pytest.mark.parametrize(
    ("name", "days", "inboxes"),
    [
        ("", None, []),
        (" \n", None, []),
        ("x" * 256, None, []),
        ("x", 0.01, []),
        ("x", 1e9, []),
        ("x", None, ["nowhere"]),
    ],
)
def test_a_key_that_cannot_be_is_refused_in_one_sentence(db: Database, name: str, days: float | None, inboxes: list[str]) -> None:
    with pytest.raises(AccessError) as refused:
        keys.add(db, name, Role.VIEWER, days=days, inboxes=inboxes, actor="cli")
    assert str(refused.value).endswith(".")
    assert keys.all_of_them(db) == []
    assert deeds(db) == []


def test_an_unknown_key_is_missing(db: Database) -> None:
    for ask in (lambda: keys.get(db, "x"), lambda: keys.revoke(db, "x", actor="cli")):
        with pytest.raises(AccessError) as refused:
            ask()
        assert refused.value.missing


def test_once_there_was_anybody_there_is_always_somebody(db: Database) -> None:
    assert not keys.anybody(db)
    row, _ = keys.add(db, "a", Role.ADMIN, actor="cli")
    keys.revoke(db, row.id, actor="cli")
    assert keys.anybody(db), "a revoked key does not open the house to everyone"


def test_a_user_is_somebody(db: Database) -> None:
    users.add(db, "ann", PASSWORD, Role.ADMIN, actor="cli")
    users.switch(db, "ann", on=False, actor="cli")
    assert keys.anybody(db)


# -- users


def test_a_user_comes_in_by_their_password_only(db: Database, inboxes: None) -> None:
    users.add(db, "ann", PASSWORD, Role.OPERATOR, inboxes=["north"], actor="cli")

    row = users.authenticated(db, "ann", PASSWORD)

    assert row is not None
    assert row.password.startswith("$argon2id$v=19$m=65536,t=3,p=1$")
    assert users.of_session(db, "ann", row.generation) == Principal("user:ann", Role.OPERATOR, frozenset({"north"}))
    for name, password in (("ann", PASSWORD + "!"), ("ann", ""), ("bob", PASSWORD), ("", ""), ("ann", "x" * 5000), ("a" * 500, PASSWORD)):
        assert users.authenticated(db, name, password) is None
    assert deeds(db) == [("cli", "user.add", "user:ann")]


def test_the_first_try_costs_as_many_hashes_whoever_it_is_for(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    users.add(db, "ann", PASSWORD, Role.VIEWER, actor="cli")
    made: list[str] = []
    real = users._hash
    monkeypatch.setattr(users, "_hash", lambda password: made.append(password) or real(password))
    counts = []
    for name in ("ann", "nobody"):
        users._nobodys.cache_clear()  # as after a start
        made.clear()
        assert users.authenticated(db, name, "wrong") is None
        counts.append(len(made))
    assert counts == [1, 1]


def test_whatever_changes_what_a_user_may_do_ends_their_sessions(db: Database, inboxes: None) -> None:
    users.add(db, "ann", PASSWORD, Role.VIEWER, actor="cli")
    changes = [
        lambda: users.set_password(db, "ann", PASSWORD + "2", actor="user:ann"),
        lambda: users.change(db, "ann", role=Role.ADMIN, actor="user:bob"),
        lambda: users.change(db, "ann", inboxes=["south"], actor="user:bob"),
        lambda: users.end_sessions(db, "ann", actor="user:bob"),
        lambda: users.switch(db, "ann", on=False, actor="user:bob"),
        lambda: users.switch(db, "ann", on=True, actor="user:bob"),
    ]
    for number, change in enumerate(changes):
        generation = users.get(db, "ann").generation
        change()
        assert users.of_session(db, "ann", generation) is None, number
        now_off = users.get(db, "ann").disabled_at is not None
        assert (users.of_session(db, "ann", generation + 1) is None) == now_off, number
    assert [action for _, action, _ in deeds(db)[1:]] == [
        "user.password",
        "user.change",
        "user.change",
        "user.logout",
        "user.disable",
        "user.enable",
    ]


def test_changing_nothing_ends_nothing_and_is_no_deed(db: Database) -> None:
    users.add(db, "ann", PASSWORD, Role.VIEWER, actor="cli")
    users.change(db, "ann", role=Role.VIEWER, inboxes=[], actor="cli")
    users.switch(db, "ann", on=True, actor="cli")
    assert users.get(db, "ann").generation == 0
    assert len(deeds(db)) == 1


def test_a_user_who_was_turned_off_stays_out(db: Database) -> None:
    users.add(db, "ann", PASSWORD, Role.VIEWER, actor="cli")
    users.switch(db, "ann", on=False, actor="cli")
    assert users.authenticated(db, "ann", PASSWORD) is None


def test_a_password_of_older_strength_is_hashed_anew_at_the_next_login(db: Database) -> None:
    users.add(db, "ann", PASSWORD, Role.VIEWER, actor="cli")
    with db.write() as session:
        session.execute(update(UserRow).values(password=PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)))
    assert users.authenticated(db, "ann", PASSWORD)
    assert "m=65536,t=3" in users.get(db, "ann").password
    assert users.authenticated(db, "ann", PASSWORD)


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("Ann", PASSWORD),
        ("", PASSWORD),
        ("a b", PASSWORD),
        ("-ann", PASSWORD),
        ("a" * 65, PASSWORD),
        ("a\0", PASSWORD),
        ("ann", "short"),
        ("ann", "x" * 1001),
        ("ann", "aaaaaaaaaaaaaaaaaa"),
        ("ann", "I am Ann and nobody else"),
    ],
)
def test_a_user_that_cannot_be_is_refused_in_one_sentence(db: Database, name: str, password: str) -> None:
    with pytest.raises(AccessError) as refused:
        users.add(db, name, password, Role.VIEWER, actor="cli")
    assert str(refused.value).endswith(".")
    assert password not in str(refused.value) or not password
    assert users.all_of_them(db) == []


def test_a_name_that_two_give_at_once_is_given_once(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    users.add(db, "ann", PASSWORD, Role.VIEWER, actor="cli")
    monkeypatch.setattr(Session, "get", lambda *_: None)  # the other's is not to be seen yet
    with pytest.raises(AccessError, match="There is a user ann already"):
        users.add(db, "ann", PASSWORD, Role.ADMIN, actor="cli")


def test_a_name_is_given_once(db: Database) -> None:
    users.add(db, "ann", PASSWORD, Role.VIEWER, actor="cli")
    with pytest.raises(AccessError, match="already"):
        users.add(db, "ann", PASSWORD, Role.ADMIN, actor="cli")
    assert users.get(db, "ann").role == "viewer"


# -- the audit


def test_the_audit_is_only_ever_appended_to(db: Database) -> None:
    keys.add(db, "a", Role.VIEWER, actor="cli")
    for statement in (update(AuditRow).values(actor="somebody else"), delete(AuditRow)):
        with pytest.raises(DatabaseError, match="neither changed nor removed"), db.write() as session:
            session.execute(statement)
    assert len(deeds(db)) == 1


def test_a_deed_that_did_not_happen_is_not_noted(db: Database) -> None:
    def fail() -> None:
        with db.write() as session:
            audit.note(session, "cli", "key.add", "key:x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert deeds(db) == []


def test_the_audit_is_read_page_by_page_and_by_who_what_and_whom(db: Database) -> None:
    with db.write() as session:
        for number in range(7):
            audit.note(session, f"user:{number % 2}", ("key.add", "keyring.add", "user.add")[number % 3], f"key:{number}", number=number)
    seen: list[int] = []
    before = None
    while True:
        rows, before = audit.page(db, before=before, limit=3)
        seen += [row.detail["number"] for row in rows]
        if before is None:
            break
    assert seen == [6, 5, 4, 3, 2, 1, 0]

    def numbers(**narrowed: str) -> list[int]:
        return [row.detail["number"] for row in audit.page(db, limit=50, **narrowed)[0]]  # type: ignore[arg-type]

    assert numbers(actor="user:1") == [5, 3, 1]
    assert numbers(action="key") == [6, 3, 0]
    assert numbers(action="user.add") == [5, 2]
    assert numbers(subject="key:4") == [4]
    assert numbers(action="%") == []


# -- passes of the command line


def test_a_pass_is_good_for_two_minutes_and_for_its_own_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, others = (Settings(secret_key=SecretStr(word * 40)) for word in ("a", "b"))
    token = passes.issue(ours)
    assert token is not None
    assert passes.known(ours, token) == Principal("cli", Role.ADMIN)
    assert passes.known(others, token) is None
    assert passes.known(Settings(), token) is None
    moment = token.split(".")[1]
    for wrong in (
        "cli.",
        "cli..",
        f"cli.{moment}.",
        f"cli.{int(moment) + 1}.{token.split('.')[2]}",
        token[:-1],
        token + "0",
        "cli.-1.x",
        "cli.nan.x",
        f"cli.{moment}.é",
    ):
        assert passes.known(ours, wrong) is None, wrong
    later = time.time() + passes.GOOD_FOR_S + 2
    monkeypatch.setattr("pipeline.passes.time.time", lambda: later)
    assert passes.known(ours, token) is None
    assert passes.issue(Settings()) is None
