"""Registry on SQLite and an object store held in memory; the real ones are in tests/integration/test_registry.py."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from pipeline import card as cards
from pipeline import registry
from pipeline.card import Card, ModelError, verify
from pipeline.database import Base, Database, EventRow, ModelRow
from pipeline.settings import Settings
from pipeline.storage import SourceGone, Storage, StorageError, StoredObject
from tests.fixtures.models import write_card, write_model


class MemoryStorage(Storage):
    """Objects in a dict. `order` remembers what was put, `fail` is raised instead of a fetch."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.order: list[str] = []
        self.fail: Exception | None = None
        self.fetched = 0

    def put(self, bucket: str, key: str, data: bytes, content_type: str) -> None:
        self.objects[f"{bucket}/{key}"] = data
        self.order.append(f"{bucket}/{key}")

    def fetch(self, bucket: str, key: str, *, version_id: str = "", etag: str = "", max_bytes: int) -> bytes:
        self.fetched += 1
        if self.fail is not None:
            raise self.fail
        if f"{bucket}/{key}" not in self.objects:
            raise SourceGone(f"{bucket}/{key} is not there.")
        return self.objects[f"{bucket}/{key}"]

    def head(self, bucket: str, key: str) -> StoredObject:
        if f"{bucket}/{key}" not in self.objects:
            raise SourceGone(f"{bucket}/{key} is not there.")
        return StoredObject(key, len(self.objects[f"{bucket}/{key}"]), "", "", 0.0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def database(settings: Settings) -> Database:
    database = Database(settings.database)
    Base.metadata.create_all(database.engine)
    return database


@pytest.fixture
def store() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def published(database: Database, store: MemoryStorage, settings: Settings, model_folder: Path) -> Card:
    return registry.publish(database, store, settings, model_folder)


def events(database: Database) -> list[EventRow]:
    with database.read() as session:
        return list(session.scalars(select(EventRow).order_by(EventRow.sequence)))


# the card


def test_a_whole_version_verifies(model_folder: Path) -> None:
    assert verify(model_folder).name == "green"


def altered(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def truncated(folder: Path, name: str) -> None:
    os.truncate(folder / name, (folder / name).stat().st_size - 1)


def missing(folder: Path, name: str) -> None:
    (folder / name).unlink()


@pytest.mark.parametrize("damage", [altered, truncated, missing])
@pytest.mark.parametrize("name", ["model.bin", "model.xml", "card.json"])
def test_damage_is_found_before_anything_is_parsed(
    model_folder: Path, name: str, damage: Callable[[Path, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {**verify(model_folder).files, "card.json": cards.sha256(model_folder / "card.json")}
    damage(model_folder, name)
    monkeypatch.setattr(Card, "model_validate_json", lambda *given: pytest.fail("the card was parsed"))
    with pytest.raises(ModelError, match=name) as caught:
        verify(model_folder, files)
    assert caught.value.permanent


def test_a_card_that_was_swapped_with_its_files_is_refused(model_folder: Path, tmp_path: Path) -> None:
    # Given the hashes of the published version
    files = {**verify(model_folder).files, "card.json": cards.sha256(model_folder / "card.json")}
    # When somebody replaces a file and writes a card that fits it
    altered(model_folder, "model.bin")
    write_card(model_folder, name="green", version="1")
    verify(model_folder)
    # Then the card alone is content and the registry is not
    with pytest.raises(ModelError, match="SHA-256 differs"):
        verify(model_folder, files)


def test_a_registry_row_without_the_card_is_refused(model_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no hash of card\.json"):
        verify(model_folder, verify(model_folder).files)


def test_a_registry_row_that_knows_fewer_files_than_the_card_is_refused(model_folder: Path) -> None:
    files = {"card.json": cards.sha256(model_folder / "card.json")}
    with pytest.raises(ModelError, match="other files than the registry"):
        verify(model_folder, files)


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"thresholds": {"authentic_below": 0.8, "manipulated_from": 0.2}}, "thresholds"),
        ({"temperature": 0}, "temperature"),
        ({"files": {"../../etc/passwd": "0" * 64}}, "files"),
        ({"files": {"model.bin": "abc"}}, "files"),
        ({"files": {}}, "files"),
        ({"files": {"card.json": "0" * 64}}, "hold its own hash"),
        ({"version": "../1"}, "version"),
        ({"channels": "BGR"}, "channels must be RGB"),
    ],
)
def test_a_senseless_card_is_refused_in_one_sentence(model_folder: Path, changed: dict[str, object], place: str) -> None:
    card = json.loads((model_folder / "card.json").read_text())
    (model_folder / "card.json").write_text(json.dumps({**card, **changed}))
    with pytest.raises(ModelError, match=place) as caught:
        verify(model_folder)
    assert str(caught.value).count("\n") == 0


def test_what_is_no_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model version"):
        verify(tmp_path)
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(ModelError, match="wrong at the whole"):
        verify(tmp_path)
    (tmp_path / "card.json").write_bytes(b" " * (cards.MAX_CARD_BYTES + 1))
    with pytest.raises(ModelError, match="larger than"):
        verify(tmp_path)


def test_what_a_card_says_beyond_the_known_is_kept(tmp_path: Path) -> None:
    card = verify(write_model(tmp_path, colour_of_the_sky="grey"))
    assert card.model_dump()["colour_of_the_sky"] == "grey"


# publishing


def test_publishing_uploads_the_card_last(published: Card, store: MemoryStorage) -> None:
    assert sorted(store.order) == [f"models/models/green/1/{name}" for name in ("card.json", "model.bin", "model.xml")]
    assert store.order[-1].endswith("card.json")


def test_publishing_again_changes_nothing(
    published: Card, database: Database, store: MemoryStorage, settings: Settings, model_folder: Path
) -> None:
    put = len(store.order)
    assert registry.publish(database, store, settings, model_folder) == published
    assert len(store.order) == put
    assert len(registry.versions(database)) == 1


def test_publishing_again_heals_a_bucket_that_lost_a_file(
    published: Card, database: Database, store: MemoryStorage, settings: Settings, model_folder: Path
) -> None:
    lost = store.objects.pop("models/models/green/1/model.bin")
    registry.publish(database, store, settings, model_folder)
    assert store.objects["models/models/green/1/model.bin"] == lost


def test_a_version_never_changes_its_files(
    published: Card, database: Database, store: MemoryStorage, settings: Settings, tmp_path: Path
) -> None:
    before = dict(store.objects)
    with pytest.raises(ModelError, match="published already with other files"):
        registry.publish(database, store, settings, write_model(tmp_path / "other", gain=9.0))
    assert store.objects == before


def test_a_damaged_folder_is_not_published(database: Database, store: MemoryStorage, settings: Settings, model_folder: Path) -> None:
    altered(model_folder, "model.bin")
    with pytest.raises(ModelError, match="SHA-256"):
        registry.publish(database, store, settings, model_folder)
    assert store.order == []
    assert registry.versions(database) == []


def test_a_store_that_is_away_leaves_no_row(
    database: Database, store: MemoryStorage, settings: Settings, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*given: object) -> None:
        raise StorageError("The object store does not answer.", permanent=False)

    monkeypatch.setattr(store, "put", away)
    with pytest.raises(ModelError, match="does not answer") as caught:
        registry.publish(database, store, settings, model_folder)
    assert not caught.value.permanent
    assert registry.versions(database) == []


# the champion


def test_no_champion_at_first(database: Database, settings: Settings) -> None:
    with pytest.raises(ModelError, match="No model is champion yet"):
        registry.champion(database)
    with pytest.raises(ModelError, match="no earlier champion"):
        registry.rollback(database, settings)


def test_promote_and_roll_back_and_forth(
    database: Database, store: MemoryStorage, settings: Settings, published: Card, tmp_path: Path
) -> None:
    registry.publish(database, store, settings, write_model(tmp_path / "two", version="2"))
    registry.promote(database, settings, "green", "1")
    registry.promote(database, settings, "green", "2")
    assert registry.champion(database) == ("green", "2")
    assert registry.rollback(database, settings) == ("green", "1")
    assert registry.champion(database) == ("green", "1")
    assert registry.rollback(database, settings) == ("green", "2")
    assert registry.champion(database) == ("green", "2")
    assert [event.type for event in events(database)] == ["model.promoted"] * 2 + ["model.rolled_back"] * 2
    assert [event.sequence for event in events(database)] == [1, 2, 3, 4]
    last = events(database)[-1].payload["data"]
    assert (last["name"], last["version"], last["previous"]) == ("green", "2", {"name": "green", "version": "1"})


def test_the_first_promotion_has_nothing_to_return_to(database: Database, settings: Settings, published: Card) -> None:
    registry.promote(database, settings, "green", "1")
    with pytest.raises(ModelError, match="no earlier champion"):
        registry.rollback(database, settings)


def test_promoting_the_champion_says_nothing(database: Database, settings: Settings, published: Card) -> None:
    registry.promote(database, settings, "green", "1")
    registry.promote(database, settings, "green", "1")
    assert len(events(database)) == 1


def test_what_is_not_published_cannot_be_promoted(database: Database, settings: Settings) -> None:
    with pytest.raises(ModelError, match="No model green 7 is published"):
        registry.promote(database, settings, "green", "7")
    assert events(database) == []


def test_versions_newest_first_with_their_aliases(
    database: Database, store: MemoryStorage, settings: Settings, published: Card, tmp_path: Path
) -> None:
    registry.publish(database, store, settings, write_model(tmp_path / "two", version="2"))
    registry.promote(database, settings, "green", "1")
    found = registry.versions(database)
    assert [(one.card.version, one.aliases) for one in found] == [("2", ()), ("1", ("champion",))]


def test_a_version_is_found_by_what_people_call_it(
    database: Database, store: MemoryStorage, settings: Settings, published: Card, tmp_path: Path
) -> None:
    assert registry.find(database, "1") == registry.find(database, "green/1") == ("green", "1")
    registry.publish(database, store, settings, write_model(tmp_path / "blue", name="blue"))
    assert registry.find(database, "blue/1") == ("blue", "1")
    with pytest.raises(ModelError, match="Several models have a version 1: write blue/1 or green/1"):
        registry.find(database, "1")
    for unknown in ("2", "red/1"):
        with pytest.raises(ModelError, match=f"No model {unknown} is published"):
            registry.find(database, unknown)


# the starter


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "STARTER", tmp_path / "starter")
    return tmp_path / "starter"


def test_the_starter_becomes_champion_once(database: Database, store: MemoryStorage, settings: Settings, starter: Path) -> None:
    write_model(starter, version="1")
    first = registry.install_starter(database, store, settings)
    assert registry.install_starter(database, store, settings) == first
    assert registry.champion(database) == ("green", "1")
    assert len(events(database)) == 1


def test_the_starter_takes_nobodys_place(
    database: Database, store: MemoryStorage, settings: Settings, starter: Path, published: Card
) -> None:
    registry.promote(database, settings, "green", "1")
    write_model(starter, version="2")
    assert registry.install_starter(database, store, settings).version == "1"
    assert registry.champion(database) == ("green", "1")


def test_no_starter_is_said_so(database: Database, store: MemoryStorage, settings: Settings, starter: Path) -> None:
    with pytest.raises(ModelError, match="ships no model"):
        registry.install_starter(database, store, settings)


# fetching


def test_a_fetched_version_is_whole_and_then_kept(
    database: Database, store: MemoryStorage, settings: Settings, published: Card, model_folder: Path
) -> None:
    folder = registry.fetch(database, store, settings, "green", "1")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {path.name: path.read_bytes() for path in model_folder.iterdir()}
    before = store.fetched
    assert registry.fetch(database, store, settings, "green", "1") == folder
    assert store.fetched == before


@pytest.mark.parametrize("damage", [altered, truncated, missing])
@pytest.mark.parametrize("name", ["model.bin", "card.json"])
def test_a_cache_that_went_bad_is_fetched_anew(
    database: Database,
    store: MemoryStorage,
    settings: Settings,
    published: Card,
    name: str,
    damage: Callable[[Path, str], None],
) -> None:
    damage(registry.fetch(database, store, settings, "green", "1"), name)
    assert verify(registry.fetch(database, store, settings, "green", "1")) == published
    assert [path.name for path in settings.model_cache_dir.iterdir()] == ["green"]


@pytest.mark.parametrize("name", ["model.bin", "model.xml", "card.json"])
def test_a_tampered_object_is_refused_and_other_versions_stay(
    database: Database, store: MemoryStorage, settings: Settings, published: Card, tmp_path: Path, name: str
) -> None:
    # Given a champion in the cache and a second version whose object was tampered with
    old = registry.fetch(database, store, settings, "green", "1")
    registry.publish(database, store, settings, write_model(tmp_path / "two", version="2"))
    store.objects[f"models/models/green/2/{name}"] += b" "
    # When it is fetched
    with pytest.raises(ModelError, match=name) as caught:
        registry.fetch(database, store, settings, "green", "2")
    # Then it is refused, nothing of it stays, and the old one is as it was
    assert caught.value.permanent
    assert sorted(path.name for path in settings.model_cache_dir.rglob("*") if path.is_dir()) == ["1", "green"]
    assert verify(old) == published


def test_a_missing_object_is_permanent(database: Database, store: MemoryStorage, settings: Settings, published: Card) -> None:
    del store.objects["models/models/green/1/model.bin"]
    with pytest.raises(ModelError, match="cannot be fetched") as caught:
        registry.fetch(database, store, settings, "green", "1")
    assert caught.value.permanent


def test_a_store_that_is_away_may_be_asked_again(database: Database, store: MemoryStorage, settings: Settings, published: Card) -> None:
    store.fail = StorageError("The object store does not answer.", permanent=False)
    with pytest.raises(ModelError, match="does not answer") as caught:
        registry.fetch(database, store, settings, "green", "1")
    assert not caught.value.permanent
    store.fail = None
    assert registry.fetch(database, store, settings, "green", "1").is_dir()


def test_a_disk_that_refuses_may_be_asked_again_and_keeps_nothing_half(
    database: Database, store: MemoryStorage, settings: Settings, published: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ModelError, match="No space left") as caught:
            registry.fetch(database, store, settings, "green", "1")
    assert not caught.value.permanent
    assert list(settings.model_cache_dir.iterdir()) == []


def test_downloads_that_nobody_finished_are_cleared_away(
    database: Database, store: MemoryStorage, settings: Settings, published: Card
) -> None:
    abandoned, recent = settings.model_cache_dir / ".fetch-old", settings.model_cache_dir / ".fetch-new"
    for folder in (abandoned, recent):
        folder.mkdir(parents=True)
        (folder / "model.bin").write_bytes(b"half")
    os.utime(abandoned, (0, time.time() - registry.ABANDONED_S - 1))
    registry.fetch(database, store, settings, "green", "1")
    assert sorted(path.name for path in settings.model_cache_dir.iterdir()) == [".fetch-new", "green"]


def test_a_download_that_another_process_clears_away_just_now_is_no_error(
    database: Database, store: MemoryStorage, settings: Settings, published: Card
) -> None:
    settings.model_cache_dir.mkdir(parents=True)
    (settings.model_cache_dir / ".fetch-gone").symlink_to("nowhere")  # it is listed, and not there when it is looked at
    assert verify(registry.fetch(database, store, settings, "green", "1")) == published


def test_several_processes_may_fetch_one_version_at_once(
    database: Database, store: MemoryStorage, settings: Settings, published: Card
) -> None:
    together = threading.Barrier(4)
    found: list[Path | Exception] = []

    def fetch() -> None:
        together.wait(30)
        try:
            found.append(registry.fetch(database, store, settings, "green", "1"))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [settings.model_cache_dir / "green" / "1"] * 4
    assert verify(settings.model_cache_dir / "green" / "1") == published
    assert [path.name for path in settings.model_cache_dir.iterdir()] == ["green"]


def test_a_file_name_of_a_tampered_row_leads_nowhere(database: Database, store: MemoryStorage, settings: Settings, published: Card) -> None:
    with database.write() as session:
        row = session.get(ModelRow, ("green", "1"))
        assert row is not None
        row.files = {**row.files, "../../escaped": "0" * 64}
    with pytest.raises(ModelError, match="list of files is damaged"):
        registry.fetch(database, store, settings, "green", "1")
    assert not (settings.model_cache_dir.parent / "escaped").exists()
