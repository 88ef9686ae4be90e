"""Pinned verdicts: which may be pinned, and what two models make of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline import collections, gate, ledger, pins, registry
from pipeline.card import verify
from pipeline.classification import Classifier
from pipeline.collections import CollectionError
from pipeline.database import Database, FaceRow, JobRow
from pipeline.images import ImageRefused, Limits
from pipeline.jobs import ModelName, Stage, Verdict
from pipeline.settings import Settings
from pipeline.training import trial
from tests.fixtures.jobs import MODEL, brought_to, claimed, judged
from tests.fixtures.models import write_model
from tests.fixtures.web import Shelf

House = tuple[Database, Shelf, Settings]
PICTURE = np.full((64, 64, 3), 120, np.uint8)


@pytest.fixture
def house(sqlite_url: str, tmp_path: Path) -> Iterator[House]:
    db = Database(sqlite_url)
    yield db, Shelf(), Settings(data_dir=tmp_path / "data")
    db.dispose()


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Classifier]:
    found = {}
    for version in ("champion", "candidate"):
        card = verify(write_model(tmp_path / "made", version=version))
        found[version] = Classifier(card, ModelName("green", version, "0" * 64), "f32", lambda crops: np.zeros(len(crops), np.float32))
    return found


@pytest.mark.parametrize(
    ("champion", "candidate", "passed", "said"),
    [
        ("authentic", "authentic", True, "1 of 1 pinned verdicts stay as they are, and none flips."),
        ("authentic", "uncertain", False, "would flip, which a person has to approve: me (authentic becomes uncertain, 0.50)."),
        ("authentic", "", False, "me (authentic becomes no face)"),
        ("uncertain", "authentic", True, "1 of 1 pinned verdicts stay"),
        ("uncertain", "uncertain", True, "1 of 1 pinned verdicts are held by neither model: me (uncertain, 0.50 instead of authentic)."),
        ("uncertain", "manipulated", True, "held by neither model"),
        ("", "", True, "held by neither model: me (no face instead of authentic)"),
        (None, "uncertain", False, "me (authentic becomes uncertain"),
    ],
)
def test_only_what_the_champion_holds_can_flip(
    house: House,
    models: dict[str, Classifier],
    champion: str | None,
    candidate: str,
    passed: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    db, store, settings = house
    pins.pin(db, store, settings, PICTURE, "authentic", what="me", actor="cli")
    verdicts = {"champion": champion, "candidate": candidate}

    def judge(of: Classifier, pictures: list[Path], **_: Any) -> list[tuple[float, str] | None]:
        verdict = verdicts[of.card.version]
        return [(0.5, verdict) if verdict else None for _ in pictures]

    monkeypatch.setattr(trial, "verdicts", judge)

    check = gate._pins(pins.compare(db, store, settings, models["candidate"], None if champion is None else models["champion"]))

    assert check.passed == passed
    assert said in check.sentence


def test_without_pins_nothing_is_judged(house: House, models: dict[str, Classifier]) -> None:
    assert gate._pins(pins.compare(*house, models["candidate"], models["champion"])).sentence == "No verdict is pinned."


def test_a_pinned_picture_beyond_the_limits_of_serving_is_judged_all_the_same(house: House, models: dict[str, Classifier]) -> None:
    db, store, settings = house
    kept = pins.pin(db, store, settings, PICTURE, "authentic", what="me", actor="cli")
    strict = settings.model_copy(update={"max_image_bytes": 10, "max_image_pixels": 10})

    assert pins.compare(db, store, strict, models["candidate"], None).flipped == ("me (authentic becomes no face)",)

    (pinned,) = pins.fetched(db, store, settings)
    with pytest.raises(ImageRefused, match=f"The picture {kept}.png cannot be judged: The picture has more pixels"):
        trial.verdicts(
            models["candidate"],
            [pinned.picture],
            limits=Limits(bytes=10_000, pixels=10, side=10_000),
            cut=trial.cut(settings, models["candidate"].card),
        )


def test_a_picture_that_could_not_be_read_back_is_not_pinned(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collections, "WIDE", Limits(bytes=10, pixels=10_000, side=10_000))

    with pytest.raises(CollectionError, match="me cannot be used: The file has"):
        pins.pin(*house, PICTURE, "authentic", what="me", actor="cli")

    assert pins.every(house[0]) == []


@pytest.mark.parametrize(("score", "verdict"), [(0.97, Verdict.MANIPULATED), (0.5, Verdict.UNCERTAIN), (0.1, Verdict.AUTHENTIC)])
def test_a_verdict_that_the_models_own_thresholds_gave_is_pinned(house: House, tmp_path: Path, score: float, verdict: Verdict) -> None:
    job_id = given(house, tmp_path, score, verdict)

    kept = pins.pin_face(*house, job_id, 0, actor="user:op")

    assert [(row.sha256, row.verdict) for row in pins.every(house[0])] == [(kept, verdict.value)]


@pytest.mark.parametrize(("score", "verdict", "by_model"), [(0.5, Verdict.MANIPULATED, "uncertain"), (0.5, Verdict.AUTHENTIC, "uncertain")])
def test_a_verdict_that_an_inboxs_thresholds_gave_is_not_pinned(
    house: House, tmp_path: Path, score: float, verdict: Verdict, by_model: str
) -> None:
    job_id = given(house, tmp_path, score, verdict)

    with pytest.raises(
        CollectionError, match=rf"is {verdict.value} by the thresholds of its inbox and {by_model} by those of unmask-resnet50 1"
    ):
        pins.pin_face(*house, job_id, 0, actor="user:op")

    assert pins.every(house[0]) == []


def test_a_face_that_was_not_judged_is_not_pinned(house: House) -> None:
    with pytest.raises(CollectionError, match="was not judged"):
        pins.pin_face(*house, brought_to(house[0], Stage.CLASSIFY), 0, actor="user:op")


def given(house: House, folder: Path, score: float, verdict: Verdict) -> str:
    """A job whose only face was given that verdict by a model with thresholds of .45 and .55."""
    db, store, settings = house
    registry.publish(db, store, settings, write_model(folder / "made", name=MODEL.name, version=MODEL.version))  # type: ignore[arg-type]
    job_id = brought_to(db, Stage.CLASSIFY)
    assert ledger.classified(db, claimed(db, job_id, Stage.CLASSIFY), [judged(0, score, verdict)], MODEL, 20.0)
    with db.read() as session:
        job, face = session.get_one(JobRow, job_id), session.get_one(FaceRow, (job_id, 0))
        assert (face.score, face.verdict) == (score, verdict.value)
    store.put(job.bucket, job.key, cv2.imencode(".png", np.full((480, 640, 3), 90, np.uint8))[1].tobytes(), "image/png")
    with db.write() as session:
        row = session.get_one(JobRow, job_id)
        row.etag, row.version_id = store.head(job.bucket, job.key).etag, ""
    return job_id
