"""The ledger of trainings: claims, fences, attempts that count from the last time it got on, and its end told once."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import select

from pipeline import classroom, payloads, trainings
from pipeline.database import Database, now
from pipeline.jobs import Status
from pipeline.tables.training import TrainingRow
from tests.fixtures.trainings import MAX_ATTEMPTS, asked, claimed, expire, row_of, told_events

KEPT = {"prefix": "trainings/x/1/", "files": {"checkpoint.npz": "0" * 64}, "stage": 0, "step": 5}
DECISION = {"outcome": "promoted", "checks": []}


def failed(db: Database, claim: trainings.Claim, *, permanent: bool = False) -> Status | None:
    return trainings.retry(db, claim, "It broke.", permanent=permanent, max_attempts=MAX_ATTEMPTS, first_wait_s=5.0, error="trace")


def look(step: int, stage: int = 0, **more: Any) -> dict[str, Any]:
    return {"event": "look", "stage": stage, "step": step, "steps": 100, "seen": 8 * step, "seconds": float(step), "auc": 0.5, **more}


class TestClaims:
    def test_many_workers_at_once_and_one_has_it(self, db: Database) -> None:
        training_id, go, got = asked(db), threading.Barrier(6), []

        def take(name: str) -> None:
            go.wait()
            got.append(trainings.claim(db, training_id, worker=name, lease_s=15, max_attempts=MAX_ATTEMPTS))

        takers = [threading.Thread(target=take, args=(f"w{number}",)) for number in range(6)]
        for taker in takers:
            taker.start()
        for taker in takers:
            taker.join()

        [claim] = [one for one in got if one is not None]
        assert (claim.fence, claim.attempt, claim.run, claim.phase) == (1, 1, 1, "train")
        assert row_of(db, training_id).worker == claim.worker

    def test_a_swept_worker_changes_nothing_any_more(self, db: Database) -> None:
        training_id = asked(db)
        old = claimed(db, training_id)
        expire(db, training_id)
        assert trainings.sweep(db, max_attempts=MAX_ATTEMPTS) == [training_id]
        new = claimed(db, training_id, worker="worker-2")

        assert not trainings.renew(db, old, 15)
        assert not trainings.told(db, old, [look(1)])
        assert not trainings.got_on(db, old, KEPT)
        assert not trainings.settled(db, old, dataset_sha256="x")
        assert not trainings.suspend(db, old)
        assert failed(db, old) is None
        assert not trainings.finish(db, old, name="m", version="1", decision=DECISION)
        row = row_of(db, training_id)
        assert (row.status, row.worker, row.fence, row.checkpoint, row.settled) == ("running", "worker-2", 2, None, {})
        assert classroom.curve(db, training_id) == []
        assert trainings.renew(db, new, 15)

    def test_what_was_kept_comes_with_the_next_claim(self, db: Database) -> None:
        training_id = asked(db, dataset="/faces", params={"steps": 3})
        claim = claimed(db, training_id)
        assert trainings.settled(db, claim, dataset_sha256="d1")
        assert trainings.got_on(db, claim, KEPT)
        assert trainings.suspend(db, claim)

        again = claimed(db, training_id, worker="worker-2")

        assert (again.dataset, again.params, again.settled) == ("/faces", {"steps": 3}, {"dataset_sha256": "d1"})
        assert again.checkpoint is not None
        assert {name: again.checkpoint[name] for name in KEPT} == KEPT
        assert (again.fence, again.attempt, again.run) == (2, 1, 2)

    def test_a_checkpoint_that_may_not_be_is_not(self, db: Database) -> None:
        claim = claimed(db, asked(db))

        def taken(session: object) -> None:
            raise RuntimeError("the card is somebody else's")

        with pytest.raises(RuntimeError):
            trainings.got_on(db, claim, KEPT, provided=taken)
        assert row_of(db, claim.training_id).checkpoint is None


class TestAttempts:
    def test_what_does_not_get_on_fails_and_says_so(self, db: Database) -> None:
        training_id = asked(db)
        for _ in range(MAX_ATTEMPTS - 1):
            assert failed(db, claimed(db, training_id)) is Status.QUEUED
            assert trainings.claim(db, training_id, worker="w", lease_s=15, max_attempts=9) is None, "it waits first"
            expire(db, training_id)
        assert failed(db, claimed(db, training_id)) is Status.FAILED

        [event] = told_events(db, training_id)
        assert event.type == "training.failed"
        assert (event.payload["data"]["reason"], event.payload["data"]["status"]) == ("It broke.", "failed")
        assert row_of(db, training_id).error == "trace"

    def test_what_gets_on_between_may_die_as_often_as_it_likes(self, db: Database) -> None:
        training_id = asked(db)
        for number in range(4 * MAX_ATTEMPTS):
            claim = claimed(db, training_id)
            assert trainings.got_on(db, claim, {**KEPT, "step": number})
            if number % 2:
                expire(db, training_id)
                assert trainings.sweep(db, max_attempts=MAX_ATTEMPTS) == [training_id]
            else:
                assert failed(db, claim) is Status.QUEUED
                expire(db, training_id)
        assert row_of(db, training_id).runs == 4 * MAX_ATTEMPTS

    def test_a_worker_that_dies_without_a_word_uses_up_its_attempt(self, db: Database) -> None:
        training_id = asked(db)
        for left in range(MAX_ATTEMPTS - 1, -1, -1):
            claimed(db, training_id)
            expire(db, training_id)
            assert trainings.sweep(db, max_attempts=MAX_ATTEMPTS) == ([training_id] if left else [])
        assert row_of(db, training_id).status == "failed"
        assert [event.type for event in told_events(db, training_id)] == ["training.failed"]

    def test_a_suspended_one_has_used_none(self, db: Database) -> None:
        training_id = asked(db)
        for _ in range(2 * MAX_ATTEMPTS):
            assert trainings.suspend(db, claimed(db, training_id))
        assert row_of(db, training_id).attempts == 0
        assert trainings.due(db, wake_after_s=60, limit=5) == [training_id]

    def test_what_can_never_work_fails_at_once(self, db: Database) -> None:
        training_id = asked(db)
        assert failed(db, claimed(db, training_id), permanent=True) is Status.FAILED

    def test_waits_grow_fourfold_up_to_ten_minutes(self) -> None:
        assert 4 <= trainings.wait_s(1, 5.0) <= 6
        assert 16 <= trainings.wait_s(2, 5.0) <= 24
        assert 480 <= trainings.wait_s(9, 5.0) <= 720


class TestEnds:
    def test_the_end_is_told_as_its_schema_says(self, db: Database) -> None:
        training_id = asked(db)
        claim = claimed(db, training_id)
        assert trainings.got_on(db, claim, KEPT, phase="release")
        assert trainings.got_on(db, claim, KEPT, phase="gate")
        assert trainings.finish(db, claim, name="unmask-resnet50", version="2", decision=DECISION)

        [event] = told_events(db, training_id)
        assert event.type == "training.done"
        payloads.DATA["training.done"].model_validate(event.payload["data"], strict=True)
        assert event.payload["data"]["model"] == {"name": "unmask-resnet50", "version": "2"}
        assert event.payload["data"]["outcome"] == "promoted"
        assert [one.what for one in classroom.history(db, training_id)] == ["asked", "claimed", "went_on", "went_on", "done"]

    def test_cancelled_from_anywhere_but_the_gate(self, db: Database) -> None:
        waiting, running, judged = asked(db), asked(db), asked(db)
        claim, at_gate = claimed(db, running), claimed(db, judged)
        assert trainings.got_on(db, at_gate, KEPT, phase="gate")

        assert trainings.cancel(db, waiting, actor="user:ann")
        assert trainings.cancel(db, running, actor="user:ann")
        assert not trainings.cancel(db, judged, actor="user:ann"), "what the gate decides, it decides for good"
        assert not trainings.cancel(db, waiting, actor="user:ann")
        assert not trainings.cancel(db, "trn_none", actor="user:ann")

        assert not trainings.renew(db, claim, 15)
        assert row_of(db, running).reason == "Cancelled by user:ann."
        assert told_events(db, running) == []

    def test_a_failed_one_goes_on_from_its_checkpoint_when_asked(self, db: Database) -> None:
        training_id = asked(db)
        claim = claimed(db, training_id)
        assert trainings.got_on(db, claim, KEPT)
        assert failed(db, claim, permanent=True) is Status.FAILED

        assert trainings.requeue(db, training_id, actor="cli")
        assert not trainings.requeue(db, training_id, actor="cli")

        again = claimed(db, training_id)
        assert (again.attempt, again.checkpoint is not None, row_of(db, training_id).reason) == (1, True, None)


class TestLeftovers:
    def test_after_a_month_nobody_goes_on_with_what_failed(self, db: Database) -> None:
        training_id, done = asked(db), asked(db)
        claim = claimed(db, training_id)
        assert trainings.got_on(db, claim, KEPT, phase="release")
        assert trainings.cancel(db, training_id, actor="cli")
        claim = claimed(db, done)
        assert trainings.finish(db, claim, name="m", version="1", decision=DECISION)

        assert trainings.forsaken(db, after_s=3600) == []
        for _ in range(2):
            assert trainings.forsaken(db, after_s=-1) == [(training_id, 2)], "found until it is said that all of it is gone"
        assert trainings.forgotten(db, training_id, 2)
        assert not trainings.forgotten(db, training_id, 2)
        assert trainings.forsaken(db, after_s=-1) == []

        assert trainings.requeue(db, training_id, actor="cli")
        again = claimed(db, training_id)
        assert (again.checkpoint, again.phase) == (None, "train"), "it begins anew"


class TestWaking:
    def test_due_are_those_nobody_came_for_oldest_first(self, db: Database) -> None:
        first, second, third = asked(db), asked(db), asked(db)
        assert trainings.due(db, wake_after_s=60, limit=5) == [], "they count as woken when they are asked for"
        for training_id in (first, second, third):
            expire(db, training_id)
        claimed(db, third)
        assert trainings.due(db, wake_after_s=60, limit=5) == [first, second]
        assert trainings.due(db, wake_after_s=60, limit=5) == []
        trainings.unwoken(db, first)
        assert trainings.due(db, wake_after_s=60, limit=5) == [first]

    def test_a_postponed_one_says_why_and_is_left_alone(self, db: Database) -> None:
        training_id = asked(db)
        trainings.postpone(db, training_id, 60, "The card is busy.")
        assert row_of(db, training_id).reason == "The card is busy."
        assert trainings.due(db, wake_after_s=0, limit=5) == []
        assert trainings.claim(db, training_id, worker="w", lease_s=15, max_attempts=3) is None


class TestCurve:
    def test_what_a_resumed_training_tells_again_stands_once(self, db: Database) -> None:
        training_id = asked(db)
        claim = claimed(db, training_id)
        assert trainings.told(db, claim, [look(5, auc=0.6), look(10, auc=0.7)])
        assert trainings.suspend(db, claim)
        claim = claimed(db, training_id)
        assert trainings.told(db, claim, [look(10, auc=0.7), look(15, auc=0.8), look(5, stage=1, auc=0.9)])

        curve = classroom.curve(db, training_id)
        assert [(point["stage"], point["step"], point["auc"]) for point in curve] == [(0, 5, 0.6), (0, 10, 0.7), (0, 15, 0.8), (1, 5, 0.9)]
        assert row_of(db, training_id).progress["auc"] == 0.9

    def test_steps_between_looks_are_kept_now_and_then_and_shown_all(self, db: Database) -> None:
        claim = claimed(db, asked(db))
        steps = [{**look(number), "event": "step"} for number in range(1, 61)]
        for one in steps:
            assert trainings.told(db, claim, [one])
        kept = classroom.curve(db, claim.training_id)
        assert len(kept) == 4, "one each fifteen seconds"
        assert row_of(db, claim.training_id).progress["step"] == 60

    def test_a_long_curve_is_thinned_and_keeps_its_end(self, db: Database) -> None:
        claim = claimed(db, asked(db))
        assert trainings.told(db, claim, [look(number) for number in range(1, 1002)])
        curve = classroom.curve(db, claim.training_id)
        assert len(curve) <= classroom.MAX_POINTS + 1
        assert (curve[0]["step"], curve[-1]["step"]) == (1, 1001)


def test_pages_are_newest_first_and_lead_on(db: Database) -> None:
    ids = [asked(db) for _ in range(5)]
    seen, after = [], None
    while True:
        rows, after = classroom.page(db, after=after, limit=2)
        seen += [row.id for row in rows]
        if after is None:
            break
    assert seen == ids[::-1]
    assert classroom.counts(db) == {"queued": 5, "running": 0, "done": 0, "failed": 0, "cancelled": 0}


def test_leases_go_by_the_databases_clock(db: Database) -> None:
    training_id = asked(db)
    claimed(db, training_id, lease_s=30)
    with db.read() as session:
        left = session.execute(select(TrainingRow.lease_until - now())).scalar_one()
    assert 25 < left <= 30
    assert trainings.sweep(db, max_attempts=3) == []


def test_numbers_that_are_none_are_kept_as_nothing_on_both_databases(db: Database) -> None:
    training_id = asked(db)
    claim = claimed(db, training_id)

    assert trainings.told(db, claim, [look(1, loss=float("nan"), images_per_s=float("inf"))])

    progress = row_of(db, training_id).progress
    assert (progress["step"], progress["loss"], progress["images_per_s"]) == (1, None, None)


def test_who_waits_for_days_is_written_down_once(db: Database) -> None:
    training_id = asked(db)
    for _ in range(3):
        trainings.postpone(db, training_id, 10.0, "Card m/cpu/0 is in use.")

    row = row_of(db, training_id)
    assert (row.reason, row.next_attempt_at is not None) == ("Card m/cpu/0 is in use.", True)
    assert [one.what for one in classroom.history(db, training_id)] == ["asked", "waits"]
