"""What brings jobs back to life: the sweep of leases, lost messages, pauses; and several of them at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from pipeline import inquiry, ledger, pauses
from pipeline.database import Database, JobRow, now
from pipeline.jobs import Queue, Stage, Status
from tests.fixtures.jobs import accepted, advance, brought_to, claimed, event_types, events, expire, upload


def due(db: Database, limit: int = 500) -> list[tuple[str, Stage, Queue]]:
    return ledger.due(db, wake_after_s=30.0, limit=limit)


# -- leases


def test_an_expired_lease_is_queued_again_and_due_at_once(db: Database) -> None:
    alive, dead = accepted(db), brought_to(db, Stage.CLASSIFY)
    claimed(db, alive)
    claimed(db, dead, Stage.CLASSIFY)
    expire(db, dead)

    assert ledger.sweep(db, max_attempts=3) == [dead]
    assert ledger.sweep(db, max_attempts=3) == []

    assert ledger.position(db, dead) == (Status.QUEUED, Stage.CLASSIFY)
    assert ledger.position(db, alive) == (Status.RUNNING, Stage.EXTRACT)
    assert due(db) == [(dead, Stage.CLASSIFY, Queue.INTERACTIVE)], "before what has not been begun"
    assert inquiry.history(db, dead)[-1].what == "swept"
    assert claimed(db, dead, Stage.CLASSIFY).attempt == 2


def test_a_job_that_kills_its_worker_is_tried_so_many_times_and_no_more(db: Database) -> None:
    poison = accepted(db)
    claims = 0
    while ledger.claim(db, poison, Stage.EXTRACT, worker="w", lease_s=15.0, max_attempts=3) is not None:
        claims += 1
        expire(db, poison)
        ledger.sweep(db, max_attempts=3)

    assert claims == 3
    job = inquiry.job(db, poison)
    assert job is not None
    assert (job.status, job.attempts) == ("failed", 3)
    assert job.reason == "The extract stage was tried 3 times; the last time its worker died or stalled."
    assert event_types(db, poison) == ["job.started", "job.failed"]
    assert events(db, poison)[-1].payload["data"]["reason"] == job.reason


def test_a_sweep_takes_no_more_than_its_limit_the_longest_expired_first(db: Database) -> None:
    ids = [accepted(db) for _ in range(5)]
    for age, job_id in enumerate(ids):
        claimed(db, job_id)
        with db.write() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_until=now() - 100.0 * (age + 1)))

    assert ledger.sweep(db, max_attempts=3, limit=2) == [ids[4], ids[3]]
    assert sorted(ledger.sweep(db, max_attempts=3)) == sorted(ids[:3])


def test_sweepers_side_by_side_take_each_lease_once(db: Database) -> None:
    ids = [accepted(db) for _ in range(40)]
    for job_id in ids:
        claimed(db, job_id)
    expire(db, *ids)

    with ThreadPoolExecutor(4) as threads:
        swept = [job_id for batch in threads.map(lambda _: ledger.sweep(db, max_attempts=3), range(4)) for job_id in batch]

    assert sorted(swept) == sorted(ids)


# -- messages


def test_a_fresh_job_is_not_due_but_one_nobody_took_is_and_then_counts_as_woken(db: Database) -> None:
    forgotten, fresh = accepted(db), accepted(db)
    expire(db, forgotten)

    assert due(db) == [(forgotten, Stage.EXTRACT, Queue.BULK)]
    assert due(db) == []
    ledger.unwoken(db, [forgotten])
    assert due(db) == [(forgotten, Stage.EXTRACT, Queue.BULK)]
    ledger.unwoken(db, [fresh, forgotten])
    ledger.woken(db, fresh)
    assert [one[0] for one in due(db)] == [forgotten]


def test_a_job_that_backs_off_is_due_when_the_wait_is_over(db: Database) -> None:
    job_id = accepted(db)
    ledger.retry(db, claimed(db, job_id), OSError(), max_attempts=3, permanent=False, sentence="Again.")
    assert due(db) == []

    with db.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(next_attempt_at=now()))

    assert due(db) == [(job_id, Stage.EXTRACT, Queue.BULK)], "while S3 is away all fail: they are not more urgent for that"


def test_only_queued_jobs_are_due_and_a_requeued_one_at_once(db: Database) -> None:
    running, cancelled, done = accepted(db), accepted(db), brought_to(db, None)
    claimed(db, running)
    ledger.cancel(db, cancelled)
    expire(db, cancelled, done)
    with db.write() as session:
        session.execute(update(JobRow).where(JobRow.id == running).values(woken_at=0.0))
    assert due(db) == []

    ledger.requeue(db, cancelled)
    assert due(db) == [(cancelled, Stage.EXTRACT, Queue.BULK)]


def test_a_stage_that_was_left_waiting_is_due_as_well(db: Database) -> None:
    """The chain's own message starts the next stage, so it is not due before `wake_after_s`."""
    job_id = brought_to(db, Stage.RENDER)
    assert due(db) == []

    expire(db, job_id)

    assert due(db) == [(job_id, Stage.RENDER, Queue.BULK)]


def test_those_unwoken_longest_come_first_and_wakers_side_by_side_take_each_once(db: Database) -> None:
    ids = [accepted(db) for _ in range(60)]
    expire(db, *ids)
    ledger.unwoken(db, ids[50:])

    assert sorted(one[0] for one in due(db, limit=10)) == sorted(ids[50:])
    with ThreadPoolExecutor(4) as threads:
        woken = [one[0] for batch in threads.map(lambda _: due(db, limit=20), range(4)) for one in batch]
    woken += [one[0] for one in due(db)]
    assert sorted(woken) == sorted(ids[:50])


# -- pauses


@pytest.mark.parametrize(
    ("name", "stopped"),
    [
        ("bulk", {("bulk", "extract"), ("bulk", "render")}),
        ("interactive", {("interactive", "extract"), ("interactive", "render")}),
        ("extract", {("bulk", "extract")}),
        ("interactive.render", {("interactive", "render")}),
        ("backfill", {("backfill", "extract"), ("backfill", "render")}),
        ("backfill.extract", {("backfill", "extract")}),
        ("classify", set()),
    ],
)
def test_a_pause_stops_its_queue_and_no_other(db: Database, name: str, stopped: set[tuple[str, str]]) -> None:
    jobs = {}
    for queue in Queue:
        jobs[queue.value, "extract"] = ledger.accept(db, upload(), queue=queue).job_id
        job_id = jobs[queue.value, "render"] = ledger.accept(db, upload(), queue=queue).job_id
        assert advance(db, claimed(db, job_id), [])
    expire(db, *jobs.values())

    pauses.pause(db, name)
    pauses.pause(db, name)

    assert pauses.paused(db) == {name}
    assert {one[0] for one in due(db)} == {job_id for place, job_id in jobs.items() if place not in stopped}
    for place, job_id in jobs.items():
        claim = ledger.claim(db, job_id, Stage(place[1]), worker="w", lease_s=15.0, max_attempts=3)
        assert (claim is None) == (place in stopped), place

    pauses.resume(db, name)
    assert pauses.paused(db) == set()
    assert {one[0] for one in due(db)} == {jobs[place] for place in stopped}, "those that waited are due at once"


def test_what_runs_goes_on_while_its_queue_is_paused(db: Database) -> None:
    job_id = accepted(db)
    claim = claimed(db, job_id)
    pauses.pause(db, "bulk")

    assert ledger.renew(db, claim, 15.0)
    assert advance(db, claim)
    assert ledger.position(db, job_id) == (Status.QUEUED, Stage.CLASSIFY)


def test_an_unknown_queue_cannot_be_paused(db: Database) -> None:
    with pytest.raises(ledger.LedgerError, match="no queue 'extrakt'"):
        pauses.pause(db, "extrakt")
