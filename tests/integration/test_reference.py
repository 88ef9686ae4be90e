"""A champion that came past the gate is measured on the hold-out all the same; where it cannot be, that is said."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline import classification, collections, drift, reference, registry, schedules
from pipeline.database import AliasRow, Database, ModelRow
from pipeline.settings import Settings
from pipeline.tables.learning import CollectionRow, ItemRow, ReferenceRow
from pipeline.training import trial
from tests.fixtures.people import few
from tests.fixtures.web import Shelf, Web
from workers import doctor, measuring, upkeep
from workers.cli import main

STARTER = registry.shipped()[-1]
CHAMPION = ("m", "1")


def crowned(db: Database, name: str = "m", version: str = "1") -> None:
    """A champion that nobody measured."""
    with db.write() as session:
        if session.get(ModelRow, (name, version)) is None:
            session.add(ModelRow(name=name, version=version, files={}, card={}, created_at=1.0))
        session.add(AliasRow(alias=registry.CHAMPION, name=name, version=version, changed_at=1.0))


def photographed(db: Database, first: int, number: int) -> None:
    """So many people of the hold-out, each with a photograph."""
    with db.write() as session:
        for k in range(first, first + number):
            told: dict[str, Any] = {"collection": collections.DEFAULT, "sha256": f"{k:064}", "suffix": ".jpg", "fake": False}
            session.add(ItemRow(**told, identity=f"p{k}", manipulation="", split="test", group={}, added_at=1.0))


def measured(db: Database, pictures: int) -> None:
    """The champion measured on a hold-out of so many pictures."""
    with db.write() as session:
        session.merge(CollectionRow(sha256="d", name=collections.DEFAULT, counts={"test": pictures}, created_at=1.0))
        session.merge(ReferenceRow(name="m", version="1", dataset="d", samples={}, created_at=1.0))


def test_what_is_owed_and_what_is_lacking(db: Database) -> None:
    assert reference.owed(db) is None
    assert "there is no champion" in reference.lacking(db)
    crowned(db)
    assert reference.owed(db) is None
    assert "there is no hold-out: `unmask datasets add FOLDER`" in reference.lacking(db)
    schedules.add(db, "weekly", actor="ann", cron="0 3 * * 0", device="cpu", on_drift=True)
    schedules.add(db, "nightly", actor="ann", cron="0 3 * * *", device="cpu")
    assert reference.lacking(db).endswith("Until then drift fires nothing for weekly.")
    photographed(db, 0, reference.LEAST_PEOPLE - 1)
    assert reference.owed(db) is None
    assert "the hold-out has 7 people, and at least 8 are needed" in reference.lacking(db)
    photographed(db, 7, 1)
    assert reference.owed(db) == CHAMPION
    assert "m 1 is still to be measured" in reference.lacking(db)
    measured(db, 8)
    assert reference.owed(db) is None
    assert reference.lacking(db) == ""
    photographed(db, 8, 1)
    assert reference.owed(db) == CHAMPION, "the hold-out is another one than it was measured on"
    assert reference.lacking(db) == "", "what there is goes on being compared with"


@pytest.mark.timeout(600)
def test_a_champion_by_hand_is_measured_as_the_gate_would(sqlite_url: str, tmp_path: Path, faces_folder: Path) -> None:
    db, store, settings = Database(sqlite_url), Shelf(), Settings(data_dir=tmp_path / "data")
    card = registry.publish(db, store, settings, STARTER)
    crowned(db, card.name, card.version)
    assert reference.measure(db, store, settings) is None, "there is no hold-out"
    collections.add(db, store, settings, few(faces_folder, tmp_path / "faces", {"test": 8, "train": 1}), actor="cli")

    assert [reference.measure(db, store, settings) for _ in range(2)] == [(card.name, card.version), None]

    with db.read() as session:
        samples = session.get_one(ReferenceRow, (card.name, card.version)).samples
    assert {name: len(values) for name, values in samples.items()} == {
        "score": 8,
        **dict.fromkeys(("size", "blur", "detection"), 8),
    }
    assert samples.keys() == set(drift.MEASURES)
    classifier = classification.load(
        registry.fetch(db, store, settings, card.name, card.version), runtime="openvino", precision=settings.precision
    )
    facts = settings.data_dir / "datasets" / "facts.npz"
    by_the_gate, _ = trial.measured(classifier, collections.default(db, store, settings).faces, facts=facts, seed=1, per_portrait=1)
    assert np.abs(np.array(samples["score"]) - by_the_gate.clean_reals).max() < 1e-3
    db.dispose()


class Begun:
    """A process that only says that it is one."""

    def __init__(self, command: list[str], **how: Any) -> None:
        self.command, self.how = command, how
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.code = -9


def test_upkeep_begins_it_once_and_ends_what_takes_too_long(db: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun: list[Begun] = []

    def begin(command: list[str], **how: Any) -> Begun:
        begun.append(Begun(command, **how))
        return begun[-1]

    clock = SimpleNamespace(monotonic=lambda: clock.at, at=100.0)
    monkeypatch.setattr(measuring, "subprocess", SimpleNamespace(Popen=begin, DEVNULL=subprocess.DEVNULL))
    monkeypatch.setattr(measuring, "time", clock)
    monkeypatch.setattr(measuring, "_running", None)
    monkeypatch.setattr(upkeep, "settings", lambda: Settings(data_dir=tmp_path))
    monkeypatch.setattr(upkeep, "database", lambda url: db)
    crowned(db)
    upkeep.look_for_drift()
    assert begun == [], "nothing to measure it on"
    photographed(db, 0, 8)
    for _ in range(2):
        upkeep.look_for_drift()
    assert [one.command[-1] for one in begun] == ["workers.measuring"]
    clock.at += measuring.LIMIT_S + 1
    upkeep.look_for_drift()
    assert (len(begun), begun[0].code) == (1, -9)
    upkeep.look_for_drift()
    assert len(begun) == 2
    begun[1].code = 0
    measured(db, 8)
    upkeep.look_for_drift()
    assert len(begun) == 2


def test_the_process_of_its_own_says_why_it_could_not(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    db = Database(sqlite_url)
    crowned(db)
    photographed(db, 0, 8)
    told = {
        "DATABASE_URL": sqlite_url,
        "DATA_DIR": str(tmp_path),
        "S3_ENDPOINT": "http://127.0.0.1:1",
        "S3_ACCESS_KEY": "a",
        "S3_SECRET_KEY": "b",
    }
    for name, value in told.items():
        monkeypatch.setenv(f"UNMASK_{name}", value)
    monkeypatch.setattr(measuring, "_running", None)

    assert measuring.begin(db, Settings(data_dir=tmp_path))

    assert measuring._running is not None
    process: subprocess.Popen[bytes] = measuring._running[0]
    assert process.wait(240) == 1
    assert "could not be measured on the hold-out" in capfd.readouterr().err
    db.dispose()


def test_the_page_and_the_command_line_say_that_there_is_no_hold_out(web: Web, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    crowned(web.db)
    monkeypatch.setenv("UNMASK_DATABASE_URL", sqlite_url)
    said = "Drift is not looked for, because there is no hold-out"

    assert said in web.client.get("/drift").get_data(as_text=True)
    assert said in " ".join(CliRunner().invoke(main, ["drift"], catch_exceptions=False).stdout.split())
    measured(web.db, 0)
    assert said not in web.client.get("/drift").get_data(as_text=True)


def test_the_doctor_says_it_beside_the_champion(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db, store, settings = Database(sqlite_url), Shelf(), Settings(database_url=sqlite_url, data_dir=tmp_path / "data")
    card = registry.publish(db, store, settings, STARTER)
    crowned(db, card.name, card.version)
    monkeypatch.setattr(doctor.surroundings, "object_store", lambda settings: store)

    finding = doctor.check("champion model", doctor.Patient(settings))

    assert finding.well, finding.found
    assert "on one core. Drift is not looked for, because there is no hold-out" in finding.found
    db.dispose()
