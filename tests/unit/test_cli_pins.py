"""`unmask datasets unpin`, without a stack."""

from __future__ import annotations

import pytest

from pipeline import pins
from pipeline.database import Database
from pipeline.tables.learning import PinRow
from tests.unit.test_cli import Run, db, one_sentence, run

__all__ = ["db", "run"]

OLDER, NEWER = "ab" + "0" * 62, "ab" + "1" * 62


@pytest.fixture
def pinned(db: Database) -> Database:
    with db.write() as session:
        for age, (sha256, what) in enumerate([(NEWER, "newer.jpg"), (OLDER, "older.jpg")]):
            row = PinRow(sha256=sha256, suffix=".png", verdict="authentic", what=what, actor="cli", created_at=1e9 - age)
            session.add(row)
    return db


@pytest.mark.parametrize(
    ("beginning", "said"),
    [
        ("", "Say which"),
        ("ff", "No verdict is pinned under ff"),
        ("ab", "2 pinned verdicts begin with ab"),
    ],
)
def test_nothing_is_unpinned_unless_it_is_plain_which(run: Run, pinned: Database, beginning: str, said: str) -> None:
    assert said in one_sentence(run("datasets", "unpin", beginning))
    assert [row.sha256 for row in pins.every(pinned)] == [OLDER, NEWER]


def test_the_answer_says_what_was_unpinned(run: Run, pinned: Database) -> None:
    answer = run("datasets", "unpin", NEWER[:3])
    assert answer.exit_code == 0, answer.output
    assert "newer.jpg was authentic" in answer.stdout
    assert [row.sha256 for row in pins.every(pinned)] == [OLDER]
