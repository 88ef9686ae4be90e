"""`unmask keys`, `unmask users`, `unmask audit`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from click.testing import CliRunner, Result

from pipeline import keys, users
from pipeline.database import Database
from workers.cli import main

PASSWORD = "correct horse battery"
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `unmask` on a database of its own."""
    monkeypatch.setenv("UNMASK_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("UNMASK_DATABASE_URL", sqlite_url)
    monkeypatch.setattr("pipeline.users._hasher", lambda: PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    return lambda *arguments, typed=None: CliRunner().invoke(main, list(arguments), input=typed)


@pytest.fixture
def db(run: Run, sqlite_url: str) -> Database:
    """The database that the commands work on."""
    return Database(sqlite_url)


def ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("unmask: ")
    return line


def test_a_key_is_made_shown_once_listed_and_revoked(run: Run, db: Database) -> None:
    made = json.loads(ok(run("keys", "add", "the scanner", "--role", "reviewer", "--days", "30", "--json")))
    who = keys.known(db, made["key"])
    assert who is not None
    assert (who.actor, who.role.value) == (f"key:{made['id']}", "reviewer")

    plain = ok(run("keys", "add", "another", "--role", "admin"))
    assert keys.known(db, plain.splitlines()[-1]) is not None
    listed = ok(run("keys", "list")) + ok(run("keys", "list", "--json"))
    assert "the scanner" in listed
    for key in (made["key"], plain.splitlines()[-1]):
        assert key not in listed

    assert "opens nothing" in ok(run("keys", "revoke", made["id"]))
    assert keys.known(db, made["key"]) is None
    assert "revoked" in ok(run("keys", "list"))


def test_a_user_is_made_changed_turned_off_and_on(run: Run, db: Database) -> None:
    assert "may log in" in ok(run("users", "add", "ann", "--role", "viewer", "--password-stdin", typed=PASSWORD + "\n"))
    assert users.authenticated(db, "ann", PASSWORD)
    assert "operator" in ok(run("users", "change", "ann", "--role", "operator", "--inbox", "default"))
    assert users.get(db, "ann").inboxes == ["default"]
    ok(run("users", "change", "ann", "--every-inbox"))
    assert (users.get(db, "ann").role, users.get(db, "ann").inboxes) == ("operator", [])
    ok(run("users", "disable", "ann"))
    assert users.authenticated(db, "ann", PASSWORD) is None
    assert "off" in ok(run("users", "list"))
    ok(run("users", "enable", "ann"))
    ok(run("users", "password", "ann", typed=f"{PASSWORD}!\n{PASSWORD}!\n"))
    assert users.authenticated(db, "ann", PASSWORD + "!")
    generation = users.get(db, "ann").generation
    ok(run("users", "logout", "ann"))
    assert users.get(db, "ann").generation == generation + 1
    assert json.loads(ok(run("users", "list", "--json")))[0]["name"] == "ann"


def test_what_was_done_is_in_the_audit_without_a_secret(run: Run) -> None:
    made = json.loads(ok(run("keys", "add", "a", "--role", "viewer", "--days", "30", "--json")))
    ok(run("users", "add", "ann", "--role", "viewer", "--password-stdin", typed=PASSWORD + "\n"))
    deeds = json.loads(ok(run("audit", "--json")))
    assert [(deed["actor"], deed["action"], deed["subject"]) for deed in deeds] == [
        ("cli", "user.add", "user:ann"),
        ("cli", "key.add", f"key:{made['id']}"),
    ]
    assert re.search(r"expires_at: \d{4}-\d\d-\d\d", ok(run("audit"))), "a time reads as one"
    text = ok(run("audit")) + json.dumps(deeds)
    assert PASSWORD not in text
    assert made["key"] not in text
    assert [deed["action"] for deed in json.loads(ok(run("audit", "--action", "key", "--json")))] == ["key.add"]
    assert json.loads(ok(run("audit", "--actor", "user:ann", "--json"))) == []


@pytest.mark.parametrize(
    ("arguments", "typed", "said"),
    [
        (("keys", "add", "a", "--role", "viewer", "--inbox", "nowhere"), None, "no inbox"),
        (("keys", "add", "a", "--role", "king"), None, "king"),
        (("keys", "revoke", "x"), None, "no key"),
        (("users", "add", "ann", "--role", "viewer", "--password-stdin"), "short\n", "12 characters"),
        (("users", "add", "Ann Lee", "--role", "viewer", "--password-stdin"), PASSWORD + "\n", "name"),
        (("users", "password", "bob", "--password-stdin"), PASSWORD + "\n", "no user"),
        (("users", "change", "bob", "--role", "admin"), None, "no user"),
        (("users", "change", "bob", "--inbox", "a", "--every-inbox"), None, "either"),
        (("users", "disable", "bob"), None, "no user"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(run: Run, arguments: tuple[str, ...], typed: str | None, said: str) -> None:
    assert said in refused(run(*arguments, typed=typed))
