"""Serving follows: what takes over, what is refused before it is opened, how a model in the shadow stays unseen, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from pipeline import classification, registry, shadow
from pipeline.card import ModelError
from pipeline.database import AliasRow, Database, ModelRow
from pipeline.jobs import Box, Face, Judgement, ModelName, Quality, Verdict
from pipeline.settings import Settings
from pipeline.tables.learning import ShadowScoreRow
from tests.fixtures.models import write_model
from tests.fixtures.web import Shelf
from workers.champion import AGAIN_S, CHECK_S, Champion, Judge
from workers.shadowing import Shadow, chosen

CROP = np.full((224, 224, 3), (90, 150, 90), np.uint8)


@pytest.fixture
def house(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Database, Shelf, Settings]]:
    """Version 1 is champion, 2 is published; the store is in memory."""
    db, store, settings = Database(sqlite_url), Shelf(), Settings(data_dir=tmp_path / "data")
    for version, gain in (("1", 4.0), ("2", -4.0)):
        registry.publish(db, store, settings, write_model(tmp_path / "made", version=version, gain=gain))  # type: ignore[arg-type]
    registry.promote(db, settings, "green", "1")
    monkeypatch.setattr("workers.champion.storage", lambda settings: store)
    monkeypatch.setattr("workers.shadowing.storage", lambda settings: store)
    yield db, store, settings
    db.dispose()


def tamper(db: Database, store: Shelf, settings: Settings) -> None:
    data = store.objects[settings.models_bucket, "models/green/2/model.bin"][0]
    store.put(settings.models_bucket, "models/green/2/model.bin", bytes([data[0] ^ 1]) + data[1:], "")


def truncate(db: Database, store: Shelf, settings: Settings) -> None:
    data = store.objects[settings.models_bucket, "models/green/2/model.xml"][0]
    store.put(settings.models_bucket, "models/green/2/model.xml", data[: len(data) // 2], "")


def unsign(db: Database, store: Shelf, settings: Settings) -> None:
    with db.write() as session:
        session.execute(update(ModelRow).where(ModelRow.version == "2").values(signature=None))


def forge(db: Database, store: Shelf, settings: Settings) -> None:
    """Another's artefact with hashes that fit, put into bucket and registry: only the signature tells."""
    with db.write() as session:
        row = session.get_one(ModelRow, ("green", "1"))
        session.execute(update(ModelRow).where(ModelRow.version == "2").values(files={**row.files, "card.json": "0" * 64}))


def borrow(db: Database, store: Shelf, settings: Settings) -> None:
    """The signature of another version."""
    with db.write() as session:
        signature = session.get_one(ModelRow, ("green", "1")).signature
        session.execute(update(ModelRow).where(ModelRow.version == "2").values(signature=signature))


@pytest.mark.parametrize("harm", [tamper, truncate, unsign, forge, borrow])
def test_what_is_not_ours_is_refused_unopened_and_the_old_model_goes_on(
    house: tuple[Database, Shelf, Settings], harm: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    db, store, settings = house
    clock = [0.0]
    champion = Champion(db, settings, lambda: clock[0])
    assert champion.classifier().name.version == "1"
    registry.promote(db, settings, "green", "2")
    harm(db, store, settings)
    opened: list[Path] = []
    load = classification.load
    monkeypatch.setattr("pipeline.classification.load", lambda folder, **how: opened.append(folder) or load(folder, **how))

    clock[0] += CHECK_S
    assert champion.classifier().name.version == "1", "serving goes on with the old one"
    assert opened == [], "nothing of it was opened"
    with pytest.raises(ModelError):
        registry.fetch(db, store, settings, "green", "2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("harm", "said"), [(unsign, "has no signature"), (forge, "not this installation's"), (borrow, "not this installation's")]
)
def test_what_no_worker_would_use_is_not_promoted(house: tuple[Database, Shelf, Settings], harm: Callable[..., None], said: str) -> None:
    db, store, settings = house
    harm(db, store, settings)
    with pytest.raises(ModelError, match=rf"green 2 .*{said}.*`unmask models sign 2` first"):
        registry.promote(db, settings, "green", "2")
    assert registry.champion(db) == ("green", "1")


@pytest.mark.parametrize("harm", [unsign, forge, borrow])
def test_what_no_worker_would_use_is_not_rolled_back_to(house: tuple[Database, Shelf, Settings], harm: Callable[..., None]) -> None:
    db, store, settings = house
    registry.promote(db, settings, "green", "2")
    registry.rollback(db, settings)
    harm(db, store, settings)
    with pytest.raises(ModelError, match="`unmask models sign 2` first"):
        registry.rollback(db, settings, actor="cli")
    assert registry.champion(db) == ("green", "1")
    assert Champion(db, settings).classifier().name.version == "1", "a worker that starts now has a model"


def test_after_a_change_of_the_secret_key_versions_are_signed_before_they_take_over(house: tuple[Database, Shelf, Settings]) -> None:
    db, store, settings = house
    registry.promote(db, settings, "green", "2")
    changed = settings.model_copy(update={"secret_key": SecretStr("another key of the installation")})
    for take_over in (lambda: registry.rollback(db, changed), lambda: registry.promote(db, changed, "green", "1")):
        with pytest.raises(ModelError, match=r"green 1 .*not this installation's.*`unmask models sign 1` first") as caught:
            take_over()
        assert caught.value.permanent
        assert registry.champion(db) == ("green", "2")

    registry.sign(db, store, changed, "green", "1", actor="cli")  # type: ignore[arg-type]
    assert registry.rollback(db, changed) == ("green", "1")
    assert Champion(db, changed).classifier().name.version == "1"


@pytest.mark.parametrize("harm", [tamper, unsign])
def test_a_worker_that_starts_meanwhile_goes_on_with_the_old_model_too(
    house: tuple[Database, Shelf, Settings], harm: Callable[..., None]
) -> None:
    db, store, settings = house
    registry.promote(db, settings, "green", "2")
    registry.rollback(db, settings)
    registry.rollback(db, settings)
    harm(db, store, settings)

    assert Champion(db, settings).classifier().name.version == "1"

    with db.write() as session:
        session.execute(update(ModelRow).where(ModelRow.version == "1").values(created_at=9e9))
    with pytest.raises(ModelError):  # what somebody went back from is none to fall back on
        Champion(db, settings).classifier()


def test_a_signature_is_of_this_installation_and_can_be_made_anew(house: tuple[Database, Shelf, Settings]) -> None:
    db, store, settings = house
    unsign(db, store, settings)
    assert {one.card.version: one.signed for one in registry.versions(db)} == {"1": True, "2": False}

    registry.sign(db, store, settings, "green", "2", actor="cli")  # type: ignore[arg-type]
    assert registry.fetch(db, store, settings, "green", "2").is_dir()  # type: ignore[arg-type]
    tamper(db, store, settings)
    with pytest.raises(ModelError, match="not what was published"):
        registry.sign(db, store, settings, "green", "2", actor="cli")  # type: ignore[arg-type]
    elsewhere = settings.model_copy(update={"secret_key": None, "data_dir": settings.data_dir / "another"})
    with pytest.raises(ModelError, match="no key to check"):
        registry.fetch(db, store, elsewhere, "green", "2")  # type: ignore[arg-type]


def another(db: Database, store: Shelf, settings: Settings, folder: Path) -> None:
    """Publish version 3."""
    registry.publish(db, store, settings, write_model(folder, version="3", gain=-4.0))  # type: ignore[arg-type]


def test_a_good_champion_does_not_wait_for_one_that_was_refused(house: tuple[Database, Shelf, Settings], tmp_path: Path) -> None:
    db, store, settings = house
    another(db, store, settings, tmp_path / "made")
    now = [0.0]
    champion = Champion(db, settings, lambda: now[0])
    assert champion.classifier().name.version == "1"
    tamper(db, store, settings)
    registry.promote(db, settings, "green", "2")
    now[0] += CHECK_S
    assert champion.classifier().name.version == "1"

    registry.promote(db, settings, "green", "3")
    now[0] += CHECK_S
    assert champion.classifier().name.version == "3"


def test_a_champion_that_was_refused_is_tried_again_only_later(
    house: tuple[Database, Shelf, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    db, store, settings = house
    now, asked = [0.0], []
    champion = Champion(db, settings, lambda: now[0])
    champion.classifier()
    tamper(db, store, settings)
    registry.promote(db, settings, "green", "2")
    fetch = registry.fetch
    monkeypatch.setattr(registry, "fetch", lambda *given: asked.append(given[-1]) or fetch(*given))
    for moment in (CHECK_S, AGAIN_S, CHECK_S + AGAIN_S):
        now[0] = moment
        champion.classifier()
    assert asked == ["2", "2"]


def test_workers_follow_a_promotion_and_a_rollback_within_seconds(house: tuple[Database, Shelf, Settings]) -> None:
    """On the real clock: from the promotion to the first result by the new model, and back."""
    db, _, settings = house
    judge = Judge(Champion(db, settings), batch_max=4, batch_wait_s=0.0)
    try:
        assert judge.submit([CROP]).result()[0][2].version == "1"
        for change, expected in (
            (lambda: registry.promote(db, settings, "green", "2"), "2"),
            (lambda: registry.rollback(db, settings), "1"),
        ):
            began = time.monotonic()
            change()
            while judge.submit([CROP]).result()[0][2].version != expected:  # every one of them is answered: none is dropped
                assert time.monotonic() - began < 30
            print(f"first result by {expected} after {time.monotonic() - began:.2f} s")
    finally:
        judge.close()


def faces(count: int = 2) -> list[Face]:
    return [Face(k, Box(0, 0, 90, 90), 0.9, Quality(90, 50.0), None, CROP) for k in range(count)]


def judgements(count: int = 2) -> list[Judgement]:
    return [Judgement(k, 0.9, Verdict.MANIPULATED) for k in range(count)]


MODEL = ModelName("green", "1", "0" * 64)


def test_the_shadow_scores_a_share_of_the_jobs_and_touches_nothing_else(house: tuple[Database, Shelf, Settings]) -> None:
    db, _, settings = house
    shadow.begin(db, "green", "2", seconds=60, share=0.5, actor="cli")
    mine = Shadow(db, settings)
    jobs = [f"job-{k}" for k in range(14)]

    took = [mine.offer(job, faces(), judgements(), MODEL) for job in jobs]
    mine.close()

    assert took == [chosen(job, 0.5) for job in jobs]
    with db.read() as session:
        rows = list(session.scalars(select(ShadowScoreRow)))
        assert [row.alias for row in session.scalars(select(AliasRow))] == ["champion"]
    assert {row.job_id for row in rows} == {job for job in jobs if chosen(job, 0.5)}
    assert {(row.champion_verdict, row.verdict, row.champion_version) for row in rows} == {("manipulated", "authentic", "1")}
    compared = shadow.compared(db, rows[0].shadow_id)
    assert compared is not None
    assert (compared.faces, compared.changed, compared.jobs) == (2 * sum(took), 2 * sum(took), sum(took))
    assert compared.mean < -0.5


@pytest.mark.parametrize(("champion", "asked"), [("blue 2", True), ("green 1", True), ("green 2", False)])
def test_a_model_in_the_shadow_is_asked_unless_it_is_the_champion_itself(
    house: tuple[Database, Shelf, Settings], champion: str, asked: bool
) -> None:
    """The same version under another name is another model."""
    db, _, settings = house
    shadow.begin(db, "green", "2", seconds=60, share=1.0, actor="cli")
    mine = Shadow(db, settings)

    assert mine.offer("job-1", faces(), judgements(), ModelName(*champion.split(), "0" * 64)) == asked
    mine.close()

    with db.read() as session:
        assert len(session.scalars(select(ShadowScoreRow)).all()) == (2 if asked else 0)


@pytest.mark.parametrize("trouble", ["none", "over", "away", "broken", "full"])
def test_the_shadow_never_gets_in_the_way(house: tuple[Database, Shelf, Settings], trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    db, store, settings = house
    if trouble != "none":
        shadow.begin(db, "green", "2", seconds=0.000001 if trouble == "over" else 60, share=1.0, actor="cli")
    if trouble == "away":
        monkeypatch.setattr(shadow, "current", _away)
    if trouble == "broken":
        tamper(db, store, settings)
    mine = Shadow(db, settings)
    if trouble == "full":
        monkeypatch.setattr(mine, "_start", lambda: None)

    answers = [mine.offer(f"job-{k}", faces(), judgements(), MODEL) for k in range(40)]
    mine.close()

    assert answers == {"broken": answers, "full": [True] * 16 + [False] * 24}.get(trouble, [False] * 40)
    with db.read() as session:
        assert session.scalars(select(ShadowScoreRow)).all() == []


def test_what_cannot_be_put_into_the_shadow_holds_up_nothing_else(house: tuple[Database, Shelf, Settings], tmp_path: Path) -> None:
    db, store, settings = house
    another(db, store, settings, tmp_path / "made")
    tamper(db, store, settings)
    mine, fetched = Shadow(db, settings, lambda: 0.0), []
    for version in ("2", "3"):
        shadow.begin(db, "green", version, seconds=60, share=1.0, actor="cli")
        current = shadow.current(db)
        assert current is not None
        fetched.append(mine._classifier(current))
    assert fetched[0] is None
    assert fetched[1] is not None
    assert fetched[1].name.version == "3"


def _away(db: Any) -> None:
    raise OSError("the database is away")
