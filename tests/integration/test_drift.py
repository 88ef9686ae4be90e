"""Drift: a day like the hold-out is no alarm, one unlike it is, told once; and how often chance alone gives one."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from pipeline import classroom, drift, outbox, registry, schedules, trainings
from pipeline.database import AliasRow, Database, EventRow, FaceRow, JobRow, ModelRow
from pipeline.settings import Settings
from pipeline.tables.learning import ReferenceRow
from workers import upkeep

DAY = 20_000
NOW = (DAY + 1) * drift.DAY_S + 3600.0
SETTINGS = Settings(drift_min_faces=50)


@pytest.mark.parametrize(("n", "m"), [(100, 35), (300, 175), (2000, 175)])
def test_chance_alone_hardly_ever_gives_an_alarm(n: int, m: int) -> None:
    rng = np.random.default_rng(5)
    rounds = 1500

    alarms = sum(drift.compare(rng.beta(2, 3, n), rng.beta(2, 3, m), psi_limit=0.25).alarm for _ in range(rounds))

    assert alarms <= 5, f"{alarms} of {rounds}"


@pytest.mark.parametrize(("n", "m", "shift", "found"), [(300, 175, 0.15, 0.99), (100, 175, 0.15, 0.8), (2000, 175, 0.02, 0.0)])
def test_what_is_found(n: int, m: int, shift: float, found: float) -> None:
    rng = np.random.default_rng(6)

    alarms = [drift.compare(np.clip(rng.beta(4, 6, n) + shift, 0, 1), rng.beta(4, 6, m), psi_limit=0.25).alarm for _ in range(200)]

    share = float(np.mean(alarms))
    assert share >= found if found else share <= 0.02, "a change that means nothing is no alarm, however certain"


def test_ks_agrees_with_its_tables() -> None:
    """At n = m = 50 the distance .32 is reached by chance about once in a hundred times (two-sample tables: 1.63 sqrt(2/50) = .326)."""
    rng = np.random.default_rng(7)
    p = [drift.ks(np.sort(rng.random(50)), np.sort(rng.random(50)))[1] for _ in range(2000)]

    assert 0.005 < np.mean(np.array(p) < 0.02) < 0.03
    assert drift.ks(np.arange(5.0), np.arange(5.0)) == (0.0, 1.0)


def traffic(db: Database, shift: float, *, jobs: int = 120) -> None:
    """A champion with a reference, and a day of done jobs whose scores lie by `shift` above it."""
    rng = np.random.default_rng(8)
    samples = {"score": rng.beta(2, 4, 175), "size": rng.normal(300, 30, 35), "blur": rng.normal(200, 40, 35), "detection": [0.9] * 35}
    with db.write() as session:
        session.add(ModelRow(name="m", version="1", files={}, card={}, created_at=1.0))
        session.add(AliasRow(alias=registry.CHAMPION, name="m", version="1", changed_at=1.0))
        told = {name: [float(value) for value in values] for name, values in samples.items()}
        session.add(ReferenceRow(name="m", version="1", dataset="d", samples=told, created_at=1.0))
        common = {"bucket": "b", "version_id": "", "etag": "", "sequencer": "", "size": 1, "origin": "submit", "queue": "bulk"}
        common |= {"status": "done", "stage": "render", "model_name": "m", "model_version": "1"}
        made = [{**common, "id": f"j{k}", "key": f"k{k}", "created_at": DAY * drift.DAY_S + 60.0 * k} for k in range(jobs)]
        session.execute(insert(JobRow), made)
        faces = [
            {
                **{"job_id": f"j{k}", "index": index, "x": 0, "y": 0, "w": 300, "h": 300, "detection": 0.9},
                **{"size": int(rng.normal(300, 30)), "blur": rng.normal(200, 40), "score": min(1.0, rng.beta(2, 4) + shift)},
            }
            for k in range(jobs)
            for index in range(2)
        ]
        session.execute(insert(FaceRow), faces)


def told(db: Database) -> list[dict[str, object]]:
    with db.read() as session:
        return [row.payload["data"] for row in session.scalars(select(EventRow).where(EventRow.type == "drift.alarm"))]


def test_a_day_like_the_hold_out_is_compared_and_no_alarm(db: Database) -> None:
    traffic(db, 0.0)

    assert drift.look(db, SETTINGS, at=NOW) == []

    ((day, rows),) = drift.days(db).items()
    assert (day, [row.measure for row in rows], {row.n for row in rows}) == ("2024-10-04", list(drift.MEASURES), {120})
    assert drift.alarm(db) is None
    assert told(db) == []


def test_a_day_unlike_it_gives_one_alarm_by_one_event(db: Database) -> None:
    traffic(db, 0.25)

    assert [drift.look(db, SETTINGS, at=NOW) for _ in range(2)] == [["2024-10-04"], []]

    assert drift.alarm(db) == ("2024-10-04", ["score"])
    (data,) = told(db)
    assert (data["day"], data["faces"], [one["measure"] for one in data["measures"]]) == ("2024-10-04", 120, ["score"])  # type: ignore[index]
    assert math.isclose(drift.start_of("2024-10-04"), DAY * drift.DAY_S)


def test_a_day_with_few_faces_is_not_compared(db: Database) -> None:
    traffic(db, 0.25, jobs=49)

    assert drift.look(db, SETTINGS, at=NOW) == []
    assert drift.days(db) == {}


def test_an_alarm_fires_a_schedule_whoever_found_it_and_beside_the_slot_at_midnight(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    yesterday = math.floor(time.time() / drift.DAY_S) - 1
    monkeypatch.setitem(globals(), "DAY", yesterday)
    traffic(db, 0.25)
    day = drift.day_of(yesterday * drift.DAY_S)
    schedules.add(db, "daily", actor="cli", cron="0 0 * * *", device="cpu", on_drift=True, at=yesterday * drift.DAY_S - 1)
    [of_midnight] = schedules.fire_due(db, at=yesterday * drift.DAY_S)
    assert trainings.cancel(db, of_midnight, actor="cli")
    woken: list[str] = []
    monkeypatch.setattr(upkeep, "settings", lambda: SETTINGS)
    monkeypatch.setattr(upkeep, "database", lambda url: db)
    monkeypatch.setattr(upkeep.timetable, "wake", lambda db, training_id: woken.append(training_id))

    assert drift.look(db, SETTINGS) == [day], "found by `unmask drift --now`, or by an upkeep that died right after"
    assert [upkeep.look_for_drift() for _ in range(2)] == [0, 0]

    assert len(woken) == 1
    row = classroom.one(db, woken[0])
    assert row is not None
    assert (row.schedule, row.slot) == ("daily", drift.slot_of(day))


def test_two_that_look_at_the_same_moment_give_one_alarm(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic(db, 0.25)
    both, following, found = threading.Barrier(2), outbox.next_sequence, []

    def meet(session: Session, subject: str) -> int:
        with suppress(threading.BrokenBarrierError):  # where the second waits for the first, nobody meets here
            both.wait(1.0)
        return following(session, subject)

    monkeypatch.setattr(outbox, "next_sequence", meet)
    looks = [threading.Thread(target=lambda: found.append(drift.look(db, SETTINGS, at=NOW))) for _ in range(2)]
    for one in looks:
        one.start()
    for one in looks:
        one.join()

    assert sorted(found) == [[], ["2024-10-04"]]
    assert len(told(db)) == 1
