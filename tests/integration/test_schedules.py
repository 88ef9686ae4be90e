"""Schedules under a clock that the test moves: time zones, both nights when clocks change, missed slots, and many schedulers at once."""

from __future__ import annotations

import threading
from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pipeline import classroom, options, schedules, trainings
from pipeline.database import Database
from pipeline.jobs import Status
from pipeline.schedules import ScheduleError
from pipeline.tables.training import ScheduleRow
from tests.fixtures.trainings import claimed

DAY = 86_400.0


def at(text: str, zone: str = "UTC") -> float:
    """Seconds since the epoch of a local time."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def local(seconds: float | None, zone: str) -> str:
    assert seconds is not None
    return datetime.fromtimestamp(seconds, ZoneInfo(zone)).isoformat()


def slots(cron: str, zone: str, after: float, number: int) -> list[str]:
    found = []
    for _ in range(number):
        following = schedules.next_slot(cron, zone, after)
        assert following is not None
        assert following > after
        after = following
        found.append(local(after, zone))
    return found


def add(db: Database, name: str = "weekly", cron: str = "0 3 * * 0", **values: Any) -> None:
    schedules.add(db, name, actor="cli", cron=cron, device="cpu", **{"at": at("2026-11-20T12:00"), **values})


def made(db: Database) -> list[tuple[float | None, str]]:
    """Slot and status of every training, oldest first."""
    return [(row.slot, row.status) for row in reversed(classroom.page(db, limit=100)[0])]


class TestSlots:
    def test_a_slot_is_of_the_schedules_own_time_zone(self) -> None:
        noon = at("2026-11-20T12:00")
        assert slots("0 3 * * *", "Asia/Tokyo", noon, 1) == ["2026-11-21T03:00:00+09:00"]
        assert slots("0 3 * * *", "America/New_York", noon, 1) == ["2026-11-21T03:00:00-05:00"]
        assert slots("0 3 * * *", "UTC", noon, 1) == ["2026-11-21T03:00:00+00:00"]

    def test_the_night_that_lacks_an_hour_runs_it_right_after_the_gap(self) -> None:
        assert slots("30 2 * * *", "Europe/Berlin", at("2026-03-28T12:00"), 2) == ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]

    def test_the_night_that_has_an_hour_twice_runs_it_once(self) -> None:
        assert slots("30 2 * * *", "Europe/Berlin", at("2026-10-24T12:00"), 2) == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]

    def test_asked_within_the_hour_that_comes_again_it_does_not_go_back(self) -> None:
        second = datetime(2026, 10, 25, 2, 10, tzinfo=ZoneInfo("Europe/Berlin"), fold=1).timestamp()
        assert slots("30 2 * * *", "Europe/Berlin", second, 1) == ["2026-10-26T02:30:00+01:00"]

    def test_every_hour_means_every_hour_even_that_night(self) -> None:
        assert slots("0 * * * *", "Europe/Berlin", at("2026-10-25T00:30", "Europe/Berlin"), 4) == [
            "2026-10-25T01:00:00+02:00",
            "2026-10-25T02:00:00+02:00",
            "2026-10-25T02:00:00+01:00",
            "2026-10-25T03:00:00+01:00",
        ]

    @pytest.mark.parametrize("zone", ["Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia"])
    def test_a_year_of_nights_has_as_many_slots_as_days(self, zone: str) -> None:
        after, days = at("2026-01-01T12:00", zone), set()
        for _ in range(365):
            following = schedules.next_slot("30 2 * * *", zone, after)
            assert following is not None
            assert 0 < following - after < 2 * DAY
            after = following
            days.add(local(after, zone)[:10])
        assert len(days) == 365

    @pytest.mark.parametrize(
        ("cron", "zone", "said"),
        [
            ("0 3 * *", "UTC", "takes minute, hour, day, month and weekday"),
            ("0 0 3 * * *", "UTC", "takes minute, hour, day, month and weekday"),
            ("99 3 * * *", "UTC", "bad minute"),
            ("0 3 30 2 *", "UTC", "bad day-of-month"),
            ("0 3 * * *", "Europe/Atlantis", "no time zone 'Europe/Atlantis'"),
            ("0 3 * * *", "../../etc/passwd", "no time zone"),
        ],
    )
    def test_what_is_no_slot_is_said(self, cron: str, zone: str, said: str) -> None:
        with pytest.raises(ScheduleError, match=said):
            schedules.next_slot(cron, zone, at("2026-11-20T12:00"))


class TestFiring:
    def test_it_fires_at_its_slot_and_not_before(self, db: Database) -> None:
        add(db, timezone="Europe/Berlin", params={"hours": 2.5})
        sunday = at("2026-11-22T03:00", "Europe/Berlin")

        assert schedules.fire_due(db, at=sunday - 1) == []
        [training_id] = schedules.fire_due(db, at=sunday + 2)
        assert schedules.fire_due(db, at=sunday + 4) == []

        row = classroom.one(db, training_id)
        assert row is not None
        assert (row.schedule, row.slot, row.status, row.params, row.requested_by) == (
            "weekly",
            sunday,
            "queued",
            {"hours": 2.5},
            "schedule:weekly",
        )
        kept = schedules.get(db, "weekly")
        assert (kept.last_slot, kept.next_at) == (sunday, sunday + 7 * DAY)

    def test_of_missed_slots_the_last_is_run_late_and_once(self, db: Database) -> None:
        add(db, "daily", "0 3 * * *")
        back = at("2026-11-24T17:00")

        [_] = schedules.fire_due(db, at=back)

        assert made(db) == [(at("2026-11-24T03:00"), "queued")]
        assert schedules.get(db, "daily").next_at == at("2026-11-25T03:00")

    def test_or_none_where_that_is_the_rule(self, db: Database) -> None:
        add(db, "daily", "0 3 * * *", missed="skip")

        assert schedules.fire_due(db, at=at("2026-11-24T17:00")) == []
        assert schedules.get(db, "daily").next_at == at("2026-11-25T03:00")
        assert len(schedules.fire_due(db, at=at("2026-11-25T03:04"))) == 1, "a little late is not missed"

    def test_a_year_of_missed_minutes_is_found_quickly(self, db: Database) -> None:
        add(db, "minutely", "* * * * *")
        [_] = schedules.fire_due(db, at=at("2027-11-20T12:00") + 7)
        assert made(db) == [(at("2027-11-20T12:00"), "queued")]

    def test_a_slot_is_passed_over_while_the_training_before_is_not_over(self, db: Database) -> None:
        add(db, "daily", "0 3 * * *")
        [first] = schedules.fire_due(db, at=at("2026-11-21T03:00") + 1)
        claimed(db, first)

        assert schedules.fire_due(db, at=at("2026-11-22T03:00") + 1) == []

        assert made(db) == [(at("2026-11-21T03:00"), "running"), (at("2026-11-22T03:00"), "cancelled")]
        assert classroom.page(db, limit=1)[0][0].reason == schedules.NOT_OVER
        assert trainings.cancel(db, first, actor="cli")
        assert len(schedules.fire_due(db, at=at("2026-11-23T03:00") + 1)) == 1

    def test_many_schedulers_at_once_give_one_training_a_slot(self, db: Database) -> None:
        for number in range(5):
            add(db, f"s{number}", "0 3 * * *")
        go, fired, errors = threading.Barrier(6), [], []

        def look() -> None:
            try:
                go.wait()
                fired.extend(schedules.fire_due(db, at=at("2026-11-21T03:00") + 1))
            except Exception as error:
                errors.append(error)

        lookers = [threading.Thread(target=look) for _ in range(6)]
        for looker in lookers:
            looker.start()
        for looker in lookers:
            looker.join()

        assert errors == []
        assert len(fired) == len(set(fired)) == len(made(db)) == 5

    def test_a_clock_that_is_set_back_fires_nothing_again(self, db: Database) -> None:
        add(db, "daily", "0 3 * * *")
        assert len(schedules.fire_due(db, at=at("2026-11-21T03:00") + 1)) == 1
        assert schedules.fire_due(db, at=at("2026-11-21T02:00")) == []
        assert schedules.fire_due(db, at=at("2026-11-21T03:00") + 2) == []

    def test_a_name_that_is_used_again_repeats_no_slot(self, db: Database) -> None:
        add(db, "daily", "0 3 * * *")
        assert len(schedules.fire_due(db, at=at("2026-11-21T03:00") + 1)) == 1
        schedules.remove(db, "daily", actor="cli")
        add(db, "daily", "0 3 * * *")
        assert schedules.fire_due(db, at=at("2026-11-21T03:00") + 1) == []

    def test_by_the_databases_clock_if_nobody_says_what_time_it_is(self, db: Database) -> None:
        add(db, "minutely", "* * * * *")
        [_] = schedules.fire_due(db)
        [(slot, _)] = made(db)
        assert slot is not None
        assert abs(datetime.now(timezone.utc).timestamp() - slot) < 120

    def test_one_that_is_disabled_waits_and_makes_up_for_nothing(self, db: Database) -> None:
        add(db, "daily", "0 3 * * *")
        schedules.edit(db, "daily", actor="cli", at=at("2026-11-20T13:00"), enabled=False)
        assert schedules.fire_due(db, at=at("2026-11-23T03:01")) == []
        schedules.edit(db, "daily", actor="cli", at=at("2026-11-23T12:00"), enabled=True)
        assert schedules.fire_due(db, at=at("2026-11-23T12:01")) == []
        assert schedules.get(db, "daily").next_at == at("2026-11-24T03:00")

    def test_drift_fires_those_that_ask_for_it_once_a_finding(self, db: Database) -> None:
        add(db, "careful", on_drift=True)
        add(db, "plain")
        add(db, "off", on_drift=True, enabled=False)

        found = at("2026-11-21T00:05")
        assert schedules.fire_on_drift(db, slot=at("2026-11-19T00:00"), found_at=at("2026-11-20T00:05")) == [], "found before it was made"
        [training_id] = schedules.fire_on_drift(db, slot=at("2026-11-21T00:00"), found_at=found)

        row = classroom.one(db, training_id)
        assert row is not None
        assert row.schedule == "careful"
        assert schedules.fire_on_drift(db, slot=at("2026-11-21T00:00"), found_at=found) == []
        assert schedules.fire_on_drift(db, slot=at("2026-11-22T00:00"), found_at=found) == [], "the training before is not over"
        assert trainings.cancel(db, training_id, actor="cli")
        assert schedules.fire_on_drift(db, slot=at("2026-11-22T00:00"), found_at=found) == [], "passed over, and shown so"
        assert made(db) == [(at("2026-11-21T00:00"), "cancelled"), (at("2026-11-22T00:00"), "cancelled")]
        assert len(schedules.fire_on_drift(db, slot=at("2026-11-23T00:00"), found_at=found)) == 1

    def test_a_zone_that_this_machine_does_not_know_keeps_no_other_schedule_waiting(self, db: Database) -> None:
        add(db, "a-lost", cron="0 3 * * *")
        add(db, "b-good", cron="0 3 * * *")
        with db.write() as session:
            session.get_one(ScheduleRow, "a-lost").timezone = "Europe/Atlantis"

        [training_id] = schedules.fire_due(db, at=at("2026-11-21T03:00"))

        row = classroom.one(db, training_id)
        assert row is not None
        assert row.schedule == "b-good"


class TestKeeping:
    def test_run_is_beside_the_slots(self, db: Database) -> None:
        add(db, params={"steps": 5})
        first, second = schedules.run(db, "weekly", actor="user:ann"), schedules.run(db, "weekly", actor="user:ann")
        row = classroom.one(db, second)
        assert first != second
        assert row is not None
        assert (row.slot, row.schedule, row.params, row.requested_by, row.status) == (
            None,
            "weekly",
            {"steps": 5},
            "user:ann",
            Status.QUEUED.value,
        )

    def test_an_edited_schedule_waits_for_its_new_slot(self, db: Database) -> None:
        add(db)
        row = schedules.edit(db, "weekly", actor="cli", at=at("2026-11-20T12:00"), cron="0 5 * * 1", timezone="Asia/Tokyo")
        assert local(row.next_at, "Asia/Tokyo") == "2026-11-23T05:00:00+09:00"

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"missed": "all"}, "latest or skip"),
            ({"device": "tpu"}, "one of cpu, gpu, hpu"),
            ({"cron": "0 3 * * 8"}, "no cron expression"),
            ({"colour": "red"}, "has no colour"),
            ({"timezone": "Mars"}, "no time zone"),
        ],
    )
    def test_what_a_schedule_cannot_be_is_said(self, db: Database, values: dict[str, Any], said: str) -> None:
        add(db)
        with pytest.raises(ScheduleError, match=said):
            schedules.edit(db, "weekly", actor="cli", **values)

    def test_its_options_are_checked_as_those_of_a_training(self, db: Database) -> None:
        with pytest.raises(options.OptionsError, match="no option out"):
            add(db, params={"out": "/etc"})

    def test_names_are_plain_and_used_once(self, db: Database) -> None:
        add(db)
        with pytest.raises(ScheduleError, match="already"):
            add(db)
        with pytest.raises(ScheduleError, match="no name"):
            add(db, "../x")
        with pytest.raises(ScheduleError, match="no schedule 'x'") as found:
            schedules.remove(db, "x", actor="cli")
        assert found.value.missing

    def test_every_deed_is_in_the_audit(self, db: Database) -> None:
        from sqlalchemy import select

        from pipeline.tables.access import AuditRow

        add(db)
        schedules.edit(db, "weekly", actor="user:ann", missed="skip")
        schedules.run(db, "weekly", actor="key:k1")
        schedules.remove(db, "weekly", actor="user:ann")
        with db.read() as session:
            noted = session.execute(select(AuditRow.actor, AuditRow.action).order_by(AuditRow.id)).all()
        assert [tuple(one) for one in noted] == [
            ("cli", "schedule.add"),
            ("user:ann", "schedule.edit"),
            ("key:k1", "training.ask"),
            ("user:ann", "schedule.remove"),
        ]
