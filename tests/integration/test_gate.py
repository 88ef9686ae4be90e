"""The gate on real faces and real models: the shipped network, and the same with noise on its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from pipeline import collections, gate, pins, registry, shadow
from pipeline.database import Database, EventRow
from pipeline.gate import GateError, Outcome
from pipeline.images import Limits, read
from pipeline.settings import Settings
from pipeline.shadow import ShadowError
from pipeline.tables.access import AuditRow
from pipeline.tables.learning import ReferenceRow
from pipeline.training import trial
from pipeline.training.crops import Cut
from pipeline.trials import Difference, Trial
from tests.fixtures.candidates import variant
from tests.fixtures.people import few
from tests.fixtures.web import Shelf

pytestmark = pytest.mark.timeout(1200)  # half a minute of work, but of both cores

GOOD = registry.shipped()[-1]
PEOPLE = 21
"""With ten the interval is so wide that nobody gets through."""


@pytest.fixture(scope="module")
def scored() -> dict[str, Any]:
    """What each network made of the hold-out, so that it is worked out once for all tests of this file."""
    return {}


@pytest.fixture
def house(sqlite_url: str, tmp_path: Path, faces_folder: Path, scored: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A database, a store and settings, the test people in the hold-out, and fewer fakes of each than usual."""
    measured, monkey = trial.measured, monkeypatch

    def once(classifier: Any, faces: Path, **how: Any) -> Any:
        key = f"{classifier.name.sha256} {classifier.card.temperature}"
        if key not in scored:
            scored[key] = measured(classifier, faces, **how)
        return scored[key]

    monkey.setattr(trial, "measured", once)
    monkey.setattr(gate, "PER_PORTRAIT", 1)
    db, store, settings = Database(sqlite_url), Shelf(), Settings(data_dir=tmp_path / "data")
    collections.add(db, store, settings, few(faces_folder, tmp_path / "faces", {"test": PEOPLE, "train": 1}), actor="cli")
    yield db, store, settings
    db.dispose()


def events(db: Database) -> list[tuple[str, dict[str, Any]]]:
    with db.read() as session:
        return [(row.type, row.payload["data"]) for row in session.scalars(select(EventRow).order_by(EventRow.created_at))]


def crown(db: Database, store: Shelf, settings: Settings, folder: Path) -> tuple[str, str]:
    card = registry.publish(db, store, settings, folder)
    registry.promote(db, settings, card.name, card.version)
    return card.name, card.version


def picture_of(store: Shelf, settings: Settings, decision: gate.Decision) -> np.ndarray:
    data = store.fetch(settings.models_bucket, decision.picture, max_bytes=gate.MAX_PICTURE_BYTES)
    (settings.data_dir / "decision.png").write_bytes(data)
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_a_worse_candidate_is_refused_with_reasons_and_a_picture(house: Any, tmp_path: Path) -> None:
    db, store, settings = house
    champion = crown(db, store, settings, GOOD)
    worse = variant(GOOD, tmp_path / "worse", "2026.12.1", noise=0.6)

    decision = gate.consider(db, store, settings, worse, training_id="trn_1")

    assert decision.outcome is Outcome.REFUSED, [check.sentence for check in decision.checks]
    assert any("lower on the same faces" in reason for reason in decision.reasons), decision.reasons
    assert registry.champion(db) == champion
    assert [one.aliases for one in registry.versions(db) if one.card.version == "2026.12.1"] == [("candidate",)]
    (kind, told) = events(db)[-1]
    assert (kind, told["training_id"], told["reasons"]) == ("model.refused", "trn_1", list(decision.reasons))
    assert picture_of(store, settings, decision).shape[1] == 1200
    assert gate.consider(db, store, settings, worse, training_id="trn_1") == decision, "asking again measures nothing anew"
    with pytest.raises(GateError, match="does not wait"):
        gate.approve(db, settings, "unmask-resnet50", "2026.12.1", actor="user:op")
    with db.read() as session:
        reference = session.get_one(ReferenceRow, champion)
    assert {name: len(values) for name, values in reference.samples.items()} == {
        "score": PEOPLE,
        **dict.fromkeys(("size", "blur", "detection"), PEOPLE),
    }


def test_with_one_person_in_the_hold_out_nothing_is_measured_and_somebody_has_to_decide(
    sqlite_url: str, tmp_path: Path, faces_folder: Path
) -> None:
    db, store, settings = Database(sqlite_url), Shelf(), Settings(data_dir=tmp_path / "data")
    collections.add(db, store, settings, few(faces_folder, tmp_path / "faces", {"test": 1, "train": 1}), actor="cli")

    decision = gate.consider(db, store, settings, GOOD, training_id="")

    assert (decision.outcome, len(decision.checks)) == (Outcome.WAITING, 1)
    assert "The hold-out has 1 person, and at least 8 are needed" in decision.checks[0].sentence
    db.dispose()


def test_a_photograph_that_serving_would_refuse_does_not_count_for_quality(tmp_path: Path, faces_folder: Path) -> None:
    some = few(faces_folder, tmp_path / "faces", {"test": 2, "train": 1})
    smaller, larger = sorted((some / path).stat().st_size for path in (some / "held-out").read_text().splitlines())
    assert smaller < larger

    found = trial.quality(some, limits=Limits(bytes=smaller, pixels=1 << 27, side=1 << 15), cut=Cut())

    assert {name: len(values) for name, values in found.items()} == {"size": 1, "blur": 1, "detection": 1}


def test_a_better_candidate_takes_over(house: Any, tmp_path: Path) -> None:
    db, store, settings = house
    crown(db, store, settings, variant(GOOD, tmp_path / "poor", "2026.10.1", noise=0.6))

    decision = gate.consider(db, store, settings, GOOD, training_id="")

    assert (decision.outcome, decision.reasons) == (Outcome.PROMOTED, ()), [check.sentence for check in decision.checks]
    assert registry.champion(db) == ("unmask-resnet50", GOOD.name)
    assert [kind for kind, _ in events(db)] == ["model.promoted", "model.promoted"]
    assert registry.rollback(db, settings) == ("unmask-resnet50", "2026.10.1")
    assert picture_of(store, settings, decision).size


def test_a_flipped_pin_and_promotion_by_hand_wait_for_a_person(house: Any, tmp_path: Path) -> None:
    db, store, settings = house
    crown(db, store, settings, GOOD)
    photograph = next((tmp_path / "faces").glob("*/*.jpg"), None) or next((tmp_path / "faces").glob("*/*/*.jpg"))
    pixels = read(photograph.read_bytes(), Limits.of(settings)).pixels
    same = variant(GOOD, tmp_path / "same", "2026.12.2", thresholds={"authentic_below": 0.001, "manipulated_from": 0.01})
    unsure = variant(GOOD, tmp_path / "unsure", "2026.12.10", thresholds={"authentic_below": 0.0, "manipulated_from": 1.0})
    pinned = pins.pin(db, store, settings, pixels, "uncertain", what="a face of the house", actor="user:op")

    # everybody is called manipulated, or nothing, by such thresholds: the pins alone are asked here
    candidate, champion = (gate._loaded(db, store, settings, _published(db, store, settings, one)) for one in (same, unsure))
    check = gate._pins(pins.compare(db, store, settings, candidate, champion))
    assert not check.passed
    assert "a face of the house (uncertain becomes manipulated" in check.sentence
    assert gate.decided([gate.Check("auc", True, ""), check], promotes=True) is Outcome.WAITING
    pins.unpin(db, pinned, actor="user:op")

    by_hand = settings.model_copy(update={"gate_promotes": False})
    decision = gate.consider(db, store, by_hand, variant(GOOD, tmp_path / "equal", "2026.12.3"), training_id="")
    assert (decision.outcome, decision.reasons) == (Outcome.WAITING, ())
    current = shadow.current(db)
    assert current is not None
    assert current.version == "2026.12.3", "who waits is in the shadow meanwhile"
    gate.approve(db, settings, decision.name, decision.version, actor="user:op")
    assert registry.champion(db)[1] == "2026.12.3"
    assert shadow.current(db) is None


def _published(db: Database, store: Shelf, settings: Settings, folder: Path) -> tuple[str, str]:
    card = registry.publish(db, store, settings, folder)
    return card.name, card.version


def test_nobody_is_promoted_unmeasured_or_over_another_champion(sqlite_url: str, tmp_path: Path) -> None:
    db, store, settings = Database(sqlite_url), Shelf(), Settings(data_dir=tmp_path / "data")
    crown(db, store, settings, GOOD)
    decision = gate.consider(db, store, settings, variant(GOOD, tmp_path / "new", "2026.12.4"), training_id="")

    assert decision.outcome is Outcome.WAITING
    assert "unmask datasets add" in decision.reasons[0]
    crown(db, store, settings, variant(GOOD, tmp_path / "other", "2026.12.5"))
    with pytest.raises(GateError, match="no longer champion") as refused:
        gate.approve(db, settings, decision.name, decision.version, actor="user:op")
    assert refused.value.permanent, "no retry makes the former champion champion again"
    assert registry.champion(db)[1] == "2026.12.5"


def test_champion_and_decision_come_together_or_not_at_all(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, settings = Shelf(), Settings(data_dir=tmp_path / "data")
    before = crown(db, store, settings, GOOD)
    card = registry.publish(db, store, settings, variant(GOOD, tmp_path / "new", "2026.12.6"))
    holds = [gate.Check("auc", True, "It holds.")]

    def decide() -> gate.Decision:
        return gate._recorded(db, store, settings, card, before, holds, Outcome.PROMOTED, training_id="trn_1")

    def die(check: gate.Check) -> Any:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(gate, "asdict", die)
        with pytest.raises(RuntimeError, match="killed"):
            decide()
    assert registry.champion(db) == before

    decision = decide()
    assert registry.champion(db)[1] == "2026.12.6"
    assert decide() == decision, "another worker that measured it, too, finds it decided"
    assert len(gate.decisions(db)) == 1
    with db.read() as session:
        noted = [(row.actor, row.action, row.subject) for row in session.scalars(select(AuditRow).order_by(AuditRow.id))]
    assert noted == [
        *(("system", "model.publish", f"{card.name} {version}") for version in (GOOD.name, "2026.12.6")),
        ("system", "model.promote", f"{card.name} 2026.12.6"),
    ]


class Lost(Exception):
    """Whoever decides has lost the right to."""


def test_who_may_no_longer_decide_promotes_nothing(db: Database, tmp_path: Path) -> None:
    store, settings = Shelf(), Settings(data_dir=tmp_path / "data")
    before = crown(db, store, settings, GOOD)
    card = registry.publish(db, store, settings, variant(GOOD, tmp_path / "new", "2026.12.11"))

    def lost(session: Session) -> None:
        raise Lost

    with pytest.raises(Lost):
        gate._recorded(db, store, settings, card, before, [], Outcome.PROMOTED, training_id="trn_1", provided=lost)

    assert registry.champion(db) == before
    assert gate.decisions(db) == []


def test_a_version_that_somebody_promoted_meanwhile_ends_its_training_well(db: Database, tmp_path: Path) -> None:
    store, settings = Shelf(), Settings(data_dir=tmp_path / "data")
    new = variant(GOOD, tmp_path / "new", "2026.12.7")
    crown(db, store, settings, new)

    decision = gate.consider(db, store, settings, new, training_id="trn_1")

    assert (decision.outcome, [check.name for check in decision.checks]) == (Outcome.PROMOTED, ["champion"])
    assert [one.aliases for one in registry.versions(db)] == [("champion",)]
    assert gate.consider(db, store, settings, new, training_id="trn_1") == decision


def test_nobody_takes_over_from_a_champion_that_came_after_the_measuring(db: Database, tmp_path: Path) -> None:
    store, settings = Shelf(), Settings(data_dir=tmp_path / "data")
    card = registry.publish(db, store, settings, variant(GOOD, tmp_path / "new", "2026.12.8"))
    first = crown(db, store, settings, GOOD)

    with pytest.raises(GateError, match="a champion by now") as raised:
        gate._recorded(db, store, settings, card, None, [], Outcome.PROMOTED, training_id="")

    assert not raised.value.permanent
    assert registry.champion(db) == first


def test_going_into_the_shadow_and_out_of_it_is_in_the_audit_and_the_champion_never_is(db: Database, tmp_path: Path) -> None:
    store, settings = Shelf(), Settings(data_dir=tmp_path / "data")
    champion = crown(db, store, settings, GOOD)
    card = registry.publish(db, store, settings, variant(GOOD, tmp_path / "new", "2026.12.9"))
    with pytest.raises(ShadowError, match="champion itself"):
        shadow.begin(db, *champion, seconds=60, share=0.5, actor="cli")

    shadow.begin(db, card.name, card.version, seconds=60, share=0.5, actor="user:op")
    assert [shadow.end(db, card.name, card.version, actor="user:op") for _ in range(2)] == [True, False]

    with db.read() as session:
        noted = [(row.actor, row.action) for row in session.scalars(select(AuditRow).order_by(AuditRow.id))]
    assert [one for one in noted if "shadow" in one[1]] == [("user:op", "model.shadow"), ("user:op", "model.unshadow")]


FLAT = Difference(0.8, 0.8, 0.0, 0.0, 0.0)
EVEN = Trial(FLAT, FLAT, {}, (0.1, 0.1), (0.02, 0.02), {"gender: female": (12, 0.02, 0.02)}, {}, 21, 35, 175)


@pytest.mark.parametrize(
    ("found", "failed"),
    [
        (EVEN, []),
        (replace(EVEN, auc=Difference(0.79, 0.8, -0.01, -0.03, 0.01)), ["auc"]),
        (replace(EVEN, auc=Difference(0.82, 0.8, 0.02, -0.04, 0.06)), []),
        (replace(EVEN, auc=Difference(0.82, 0.8, 0.02, -0.06, 0.09)), ["auc"]),
        (replace(EVEN, tpr=Difference(0.19, 0.2, -0.01, -0.1, 0.05)), []),
        (replace(EVEN, tpr=Difference(0.10, 0.2, -0.1, -0.14, -0.01)), ["tpr"]),
        (replace(EVEN, tpr=Difference(0.20, 0.2, 0.0, -0.2, 0.2)), ["tpr"]),
        (replace(EVEN, tpr=Difference(0.05, 0.06, -0.01, -0.04, 0.03)), ["tpr"]),
        (replace(EVEN, tpr=Difference(0.05, 0.06, -0.01, -0.02, 0.03)), []),
        (replace(EVEN, tpr=Difference(0.25, 0.06, 0.19, -0.09, 0.31)), []),
        (replace(EVEN, ece=(0.16, 0.1)), ["ece"]),
        (replace(EVEN, false_positives=(0.08, 0.02)), ["groups"]),
        (replace(EVEN, groups={"gender: female": (12, 0.08, 0.02)}), ["groups"]),
    ],
)
def test_the_rules(found: Trial, failed: list[str]) -> None:
    checks = gate.judged(found, Settings())

    assert [check.name for check in checks if not check.passed] == failed
    assert gate.decided(checks, promotes=True) is (Outcome.REFUSED if failed else Outcome.PROMOTED)
