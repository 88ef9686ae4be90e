"""The registry on SQLite and PostgreSQL: what hangs on locks and on uniqueness there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import func, select

from pipeline import registry
from pipeline.card import ModelError
from pipeline.classification import load
from pipeline.database import Database, EventRow, ModelRow
from pipeline.settings import Settings
from pipeline.storage import Storage
from tests.fixtures.models import write_model
from tests.unit.test_registry import MemoryStorage


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def test_many_processes_may_publish_one_version_at_once(db: Database, settings: Settings, model_folder: Path) -> None:
    storage, together = MemoryStorage(), Barrier(4)

    def publish(_: int) -> str:
        together.wait(30)
        return registry.publish(db, storage, settings, model_folder).version

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(publish, range(4))) == ["1"] * 4
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(ModelRow)) == 1


def test_of_two_different_folders_of_one_name_only_one_is_published(db: Database, settings: Settings, tmp_path: Path) -> None:
    folders = [write_model(tmp_path / str(gain), gain=gain) for gain in (1.0, 2.0)]
    registry.publish(db, MemoryStorage(), settings, folders[0])
    with pytest.raises(ModelError, match="published already"):
        registry.publish(db, MemoryStorage(), settings, folders[1])


def test_promotions_at_once_leave_one_champion_and_an_unbroken_sequence(db: Database, settings: Settings, tmp_path: Path) -> None:
    # Given a champion and four other versions
    storage, together = MemoryStorage(), Barrier(4)
    for number in range(5):
        registry.publish(db, storage, settings, write_model(tmp_path / str(number), version=str(number)))
    registry.promote(db, settings, "green", "0")

    def promote(number: int) -> None:
        together.wait(30)
        registry.promote(db, settings, "green", str(number))

    # When all are promoted at the same moment
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(promote, range(1, 5)))
    # Then the events follow each other, each from where the last one led, to the champion of now
    with db.read() as session:
        told = [row.payload["data"] for row in session.scalars(select(EventRow).order_by(EventRow.sequence))]
    assert [data["sequence"] for data in told] == [1, 2, 3, 4, 5]
    assert [data["previous"]["version"] for data in told[1:]] == [data["version"] for data in told[:-1]]
    assert registry.champion(db) == ("green", told[-1]["version"])


def test_two_first_starts_at_once_install_one_champion(
    db: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "STARTER", tmp_path / "starter")
    write_model(tmp_path / "starter")
    storage, together = MemoryStorage(), Barrier(3)

    def install(_: int) -> str:
        together.wait(30)
        return registry.install_starter(db, storage, settings).version

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(install, range(3))) == ["1"] * 3
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(EventRow)) == 1


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Database]:
    database = Database(sqlite_url)
    yield database
    database.dispose()


def test_a_version_goes_to_the_real_store_and_comes_back(
    sqlite: Database, store: Storage, s3_settings: Settings, model_folder: Path
) -> None:
    card = registry.publish(sqlite, store, s3_settings, model_folder)
    assert sorted(one.key for one in store.listing(s3_settings.models_bucket)) == [
        f"models/green/1/{name}" for name in ("card.json", "model.bin", "model.xml")
    ]
    folder = registry.fetch(sqlite, store, s3_settings, "green", "1")
    assert registry.verify(folder) == card
    classifier = load(folder, runtime="openvino", precision="f32")
    assert classifier.name.version == "1"


@pytest.mark.parametrize("damage", ["altered", "truncated", "gone"])
def test_what_was_changed_in_the_real_store_is_refused_and_the_old_one_goes_on(
    sqlite: Database, store: Storage, s3_settings: Settings, model_folder: Path, tmp_path: Path, damage: str
) -> None:
    # Given a version in the cache and a second one whose object was changed behind our back
    registry.publish(sqlite, store, s3_settings, model_folder)
    old = registry.fetch(sqlite, store, s3_settings, "green", "1")
    registry.publish(sqlite, store, s3_settings, write_model(tmp_path / "two", version="2"))
    key, bucket = "models/green/2/model.xml", s3_settings.models_bucket
    content = store.fetch(bucket, key, max_bytes=1_000_000)
    if damage == "gone":
        store.delete(bucket, key)
    else:
        store.put(bucket, key, content[:-9] if damage == "truncated" else content.replace(b"Parameter", b"Pirameter", 1), "application/xml")
    # When it is fetched, then it is refused for good
    with pytest.raises(ModelError) as caught:
        registry.fetch(sqlite, store, s3_settings, "green", "2")
    assert caught.value.permanent
    # And the old one is as it was
    assert registry.fetch(sqlite, store, s3_settings, "green", "1") == old
    assert not (s3_settings.model_cache_dir / "green" / "2").exists()


def test_what_a_broken_off_publishing_of_another_build_left_is_put_right(
    sqlite: Database, store: Storage, s3_settings: Settings, model_folder: Path
) -> None:
    """As many bytes, of the same name: the size alone would take it for what is published."""
    key = "models/green/1/model.bin"
    store.put(s3_settings.models_bucket, key, bytes((model_folder / "model.bin").stat().st_size), "application/octet-stream")

    registry.publish(sqlite, store, s3_settings, model_folder)

    assert registry.verify(registry.fetch(sqlite, store, s3_settings, "green", "1")).version == "1"
