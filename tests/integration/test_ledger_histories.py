"""Random histories of the ledger against a model of a few lines, on both databases.

`LEDGER_HISTORIES=2000 LEDGER_STEPS=50 pytest tests/integration/test_ledger_histories.py` is the long form.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import select

from pipeline import changes, inquiry, ledger, pauses
from pipeline.database import Database, JobRow
from pipeline.jobs import STAGES, Queue, Reason, Stage, Status
from tests.fixtures.jobs import advance, event_types, expire, face, upload

EXAMPLES = int(os.environ.get("LEDGER_HISTORIES", "25"))
STEPS = int(os.environ.get("LEDGER_STEPS", "40"))
MAX_ATTEMPTS = 2
LEASE_S = 36_000.0
ANY = st.integers(0, 10**6)
ENDINGS = {Status.DONE: "job.done", Status.FAILED: "job.failed", Status.REFUSED: "job.refused", Status.SOURCE_GONE: "job.refused"}


@dataclass
class Expected:
    """What a job must look like."""

    status: Status = Status.QUEUED
    stage: Stage = Stage.EXTRACT
    attempts: int = 0
    backing_off: bool = False
    live: ledger.Claim | None = None
    told: list[str] = field(default_factory=list)

    def queued(self, stage: Stage, attempts: int, *, backing_off: bool = False) -> None:
        self.status, self.stage, self.attempts, self.backing_off, self.live = Status.QUEUED, stage, attempts, backing_off, None

    def ends(self, status: Status) -> None:
        self.status, self.live, self.backing_off = status, None, False
        self.told += [ENDINGS[status]] if status in ENDINGS else []


class Histories(RuleBasedStateMachine):
    """Every way to change a job, in any order, by live and by stale claims."""

    db: Database

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Expected] = {}
        self.claims: list[ledger.Claim] = []
        self.keys: list[str] = []

    def some_job(self, pick: int) -> tuple[str, Expected]:
        return list(self.jobs.items())[pick % len(self.jobs)]

    def some_claim(self, pick: int) -> tuple[ledger.Claim, Expected, bool]:
        """A claim made at some time, its job, and whether it still holds; half of the time the newest."""
        claim = self.claims[-1] if pick % 2 else self.claims[(pick // 2) % len(self.claims)]
        job = self.jobs[claim.job_id]
        return claim, job, job.live is claim

    @rule(again=st.booleans(), pick=ANY)
    def accept(self, again: bool, pick: int) -> None:
        if again and self.keys:
            accepted = ledger.accept(self.db, upload(self.keys[pick % len(self.keys)]))
            assert accepted == ledger.Accepted(list(self.jobs)[pick % len(self.keys)], created=False)
        elif len(self.jobs) < 4:
            new = upload()
            accepted = ledger.accept(self.db, new)
            assert accepted.created
            self.keys.append(new.key)
            self.jobs[accepted.job_id] = Expected()

    @precondition(lambda self: self.jobs)
    @rule(pick=ANY, other_stage=st.sampled_from([None, None, None, *STAGES]))
    def claim(self, pick: int, other_stage: Stage | None) -> None:
        job_id, job = self.some_job(pick)
        stage = other_stage or job.stage
        to_be_had = job.status is Status.QUEUED and job.stage is stage and not job.backing_off and not pauses.paused(self.db)

        claim = ledger.claim(self.db, job_id, stage, worker="w", lease_s=LEASE_S, max_attempts=MAX_ATTEMPTS)

        assert (claim is not None) == to_be_had
        if claim is not None:
            job.status, job.attempts, job.live = Status.RUNNING, job.attempts + 1, claim
            job.told = job.told or ["job.started"]
            assert claim.attempt == job.attempts <= MAX_ATTEMPTS
            assert all(claim.fence > older.fence for older in self.claims if older.job_id == job_id)
            self.claims.append(claim)

    @precondition(lambda self: self.claims)
    @rule(pick=ANY)
    def renew(self, pick: int) -> None:
        claim, _, holds = self.some_claim(pick)
        assert ledger.renew(self.db, claim, LEASE_S) == holds

    @precondition(lambda self: self.claims)
    @rule(pick=ANY, judge=st.booleans())
    def advance(self, pick: int, judge: bool) -> None:
        claim, job, holds = self.some_claim(pick)
        assert advance(self.db, claim, [face(0, None if judge else Reason.BLURRED)]) == holds
        if holds and claim.stage is Stage.RENDER:
            job.ends(Status.DONE)
        elif holds:
            job.queued(Stage.CLASSIFY if claim.stage is Stage.EXTRACT and judge else Stage.RENDER, 0)

    @precondition(lambda self: self.claims)
    @rule(pick=ANY, permanent=st.booleans())
    def retry(self, pick: int, permanent: bool) -> None:
        claim, job, holds = self.some_claim(pick)
        status = ledger.retry(self.db, claim, OSError("x"), max_attempts=MAX_ATTEMPTS, permanent=permanent, sentence="No.")
        if holds and (permanent or claim.attempt >= MAX_ATTEMPTS):
            job.ends(Status.FAILED)
        elif holds:
            job.queued(job.stage, job.attempts, backing_off=True)
        assert status is job.status

    @precondition(lambda self: self.claims)
    @rule(pick=ANY, gone=st.booleans())
    def give_up(self, pick: int, gone: bool) -> None:
        claim, job, holds = self.some_claim(pick)
        assert (ledger.source_gone if gone else ledger.refuse)(self.db, claim, "No.") == holds
        if holds:
            job.ends(Status.SOURCE_GONE if gone else Status.REFUSED)

    @precondition(lambda self: self.jobs)
    @rule(pick=ANY)
    def cancel(self, pick: int) -> None:
        job_id, job = self.some_job(pick)
        assert ledger.cancel(self.db, job_id) == (not job.status.terminal)
        if not job.status.terminal:
            job.ends(Status.CANCELLED)

    @precondition(lambda self: self.jobs)
    @rule(pick=ANY)
    def requeue(self, pick: int) -> None:
        job_id, job = self.some_job(pick)
        may = job.status.terminal and job.status is not Status.DONE
        assert ledger.requeue(self.db, job_id) == may
        if may:
            job.queued(Stage.EXTRACT, 0)

    @precondition(lambda self: self.jobs)
    @rule(pick=ANY)
    def an_hour_passes_and_the_sweeper_comes(self, pick: int) -> None:
        job_id, job = self.some_job(pick)
        expire(self.db, job_id)
        job.backing_off = False
        died = job.status is Status.RUNNING

        swept = ledger.sweep(self.db, max_attempts=MAX_ATTEMPTS)
        # Those of earlier histories are due as well, by now more than a sweep takes at once.
        due = [one[:2] for one in ledger.due(self.db, wake_after_s=30.0, limit=10**6) if one[0] in self.jobs]

        assert swept == ([job_id] if died and job.attempts < MAX_ATTEMPTS else [])
        if died and job.attempts >= MAX_ATTEMPTS:
            job.ends(Status.FAILED)
        elif died:
            job.queued(job.stage, job.attempts)
        if not pauses.paused(self.db):
            assert ((job_id, job.stage) in due) == (job.status is Status.QUEUED)
        assert all(self.jobs[one].status is Status.QUEUED and not self.jobs[one].backing_off for one, _ in due)

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        (pauses.pause if paused else pauses.resume)(self.db, Queue.BULK.value)

    @invariant()
    def the_rows_are_as_expected(self) -> None:
        with self.db.read() as session:
            rows = {row.id: row for row in session.scalars(select(JobRow).where(JobRow.id.in_(self.jobs)))}
        assert rows.keys() == self.jobs.keys()
        for job_id, job in self.jobs.items():
            row = rows[job_id]
            assert (row.status, row.stage, row.attempts) == (job.status.value, job.stage.value, job.attempts)
            assert (row.lease_until is not None) == (job.status is Status.RUNNING)
            assert not job.backing_off or row.next_attempt_at is not None
            assert row.next_attempt_at is None or job.status is Status.QUEUED
            assert (row.finished_at is not None) == job.status.terminal
            assert row.fence >= max((claim.fence for claim in self.claims if claim.job_id == job_id), default=0)
            assert row.sequence == len(job.told)

    @invariant()
    def the_events_are_as_expected(self) -> None:
        for job_id, job in self.jobs.items():
            assert event_types(self.db, job_id) == job.told
            assert job.told.count("job.done") == (job.status is Status.DONE)

    @invariant()
    def no_job_is_claimed_twice_at_once(self) -> None:
        for job_id in self.jobs:
            held = 0
            for row in inquiry.history(self.db, job_id):
                held = held + 1 if row.what == "claimed" else 0
                assert held <= 1

    @invariant()
    def crops_are_kept_only_for_the_living(self) -> None:
        for job_id, job in self.jobs.items():
            if job.status.terminal:
                assert all(one.crop is None for one in ledger.faces(self.db, job_id, crops=True))

    def teardown(self) -> None:
        pauses.resume(self.db, Queue.BULK.value)


@pytest.fixture
def machine(db: Database, monkeypatch: pytest.MonkeyPatch) -> type[Histories]:
    monkeypatch.setattr(changes, "BACKOFF_S", (LEASE_S,))  # that of production passes by itself on a busy machine
    return type("HistoriesOnADatabase", (Histories,), {"db": db})


@pytest.mark.timeout(0 if EXAMPLES > 100 else 300)
def test_no_history_breaks_an_invariant(machine: type[Histories]) -> None:
    chosen = settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, print_blob=True)
    run_state_machine_as_test(machine, settings=chosen)
