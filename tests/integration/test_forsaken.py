"""What was kept of trainings that nobody will go on with: it goes, however often upkeep is kept from it, and nothing else does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline import classroom, trainings
from pipeline.database import Database
from pipeline.settings import Settings
from pipeline.storage import Storage, StorageError
from tests.fixtures.trainings import asked, claimed
from workers import keeping, timetable
from workers.course import Course

Keep = Callable[[str], str]


@pytest.fixture
def keep(db: Database, store: Storage, s3_settings: Settings, tmp_path: Path) -> Keep:
    """A worker that takes a training and stores a checkpoint of it, as workers do; returns the object's key."""
    (tmp_path / "checkpoint.npz").write_bytes(b"checkpoint")

    def stored(training_id: str) -> str:
        hold, lease = SimpleNamespace(check=lambda: None), SimpleNamespace(descriptors=[])
        course = Course(db, store, s3_settings, claimed(db, training_id), cast(Any, hold), cast(Any, lease), sys.executable)
        course._store(tmp_path, ["checkpoint.npz"], "0-5", stage=0, step=5)
        row = classroom.one(db, training_id)
        assert row is not None
        assert row.checkpoint is not None
        return f"{row.checkpoint['prefix']}checkpoint.npz"

    return stored


@pytest.fixture
def forsaken(db: Database, keep: Keep) -> dict[str, str]:
    """Two cancelled trainings, each with the key of what was kept of it."""
    kept = {training_id: keep(training_id) for training_id in (asked(db), asked(db))}
    for training_id in kept:
        assert trainings.cancel(db, training_id, actor="cli")
    return kept


def tidy(db: Database, settings: Settings) -> int:
    return timetable.tidy(db, settings, after_s=-1)


def there(store: Storage, settings: Settings) -> set[str]:
    return {one.key for one in store.listing(settings.models_bucket, "trainings/")}


def test_while_the_store_is_away_nothing_is_taken_for_deleted(
    db: Database, store: Storage, s3_settings: Settings, forsaken: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StorageError("The store is away.")

    for call in ("listing", "delete"):
        with monkeypatch.context() as patch:
            patch.setattr(Storage, call, away)
            assert tidy(db, s3_settings) == 0
    assert there(store, s3_settings) == set(forsaken.values())

    assert [tidy(db, s3_settings) for _ in range(2)] == [2, 0]
    assert there(store, s3_settings) == set()


@pytest.mark.parametrize("deleted", [False, True])
def test_upkeep_that_is_killed_meanwhile_is_made_up_for(
    deleted: bool, db: Database, store: Storage, s3_settings: Settings, forsaken: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget = keeping.forget

    def killed(*given: Any, **how: Any) -> None:
        if deleted:
            forget(*given, **how)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keeping, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            tidy(db, s3_settings)

    assert [tidy(db, s3_settings) for _ in range(2)] == [2, 0]
    assert there(store, s3_settings) == set()


def test_one_that_is_retried_meanwhile_keeps_what_is_stored_from_then_on(
    db: Database, store: Storage, s3_settings: Settings, keep: Keep, forsaken: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, new = keeping.forget, dict[str, str]()

    def slow(store: Storage, settings: Settings, training_id: str, **how: Any) -> bool:
        if not new:  # both were found, and nothing is deleted yet
            for retried in forsaken:
                assert trainings.requeue(db, retried, actor="cli")
                new[retried] = ""  # storing forgets as well, and comes by here
                new[retried] = keep(retried)
        return forget(store, settings, training_id, **how)

    with monkeypatch.context() as patch:
        patch.setattr(keeping, "forget", slow)
        assert tidy(db, s3_settings) == 0

    assert there(store, s3_settings) == set(new.values())
    assert {row.runs for row in classroom.page(db, limit=9)[0]} == {2}, "found again if they come to nothing once more"
