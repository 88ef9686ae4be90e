"""Many workers at one ledger: each job is had by one of them at a time, and comes to one end."""

from __future__ import annotations

import multiprocessing
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise

import pytest
from sqlalchemy import select, update

from pipeline import inquiry, ledger
from pipeline.database import Database, HistoryRow, JobRow, now
from pipeline.jobs import STAGES, Stage
from tests.fixtures.jobs import accepted, advance, event_types

JOBS = 200


def claim_share(db: Database, ids: list[str], seed: int, share: int) -> list[str]:
    """Claim jobs in an order of one's own until the share is full; the ids that were to be had.

    Without a share, the worker that SQLite lets in first may have them all before the others have waited out its lock.
    """
    mine = random.Random(seed).sample(ids, len(ids))
    tried = (ledger.claim(db, job_id, Stage.EXTRACT, worker=f"worker-{seed}", lease_s=60.0, max_attempts=3) for job_id in mine)
    return list(islice((claim.job_id for claim in tried if claim is not None), share))


def _child(
    url: str, ids: list[str], seed: int, gate: multiprocessing.synchronize.Barrier, got: multiprocessing.queues.Queue[list[str]]
) -> None:
    db = Database(url)
    try:
        gate.wait()
        got.put(claim_share(db, ids, seed, JOBS // 4))
    finally:
        db.dispose()


def by_threads(url: str, ids: list[str]) -> list[list[str]]:
    db = Database(url)
    try:
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(lambda seed: claim_share(db, ids, seed, JOBS // 8), range(8)))
    finally:
        db.dispose()


def by_processes(url: str, ids: list[str]) -> list[list[str]]:
    spawn = multiprocessing.get_context("spawn")
    gate, got = spawn.Barrier(4), spawn.Queue()
    children = [spawn.Process(target=_child, args=(url, ids, seed, gate, got)) for seed in range(4)]
    for child in children:
        child.start()
    claimed = [got.get(timeout=120) for _ in children]
    for child in children:
        child.join()
    return claimed


@pytest.mark.parametrize("workers", [by_threads, by_processes])
def test_each_job_is_claimed_exactly_once(db: Database, db_url: str, workers: Callable[[str, list[str]], list[list[str]]]) -> None:
    ids = [accepted(db) for _ in range(JOBS)]

    shares = workers(db_url, ids)

    assert sorted(job_id for share in shares for job_id in share) == sorted(ids)
    assert len({len(share) for share in shares}) == 1
    with db.read() as session:
        rows = session.execute(select(JobRow.attempts, JobRow.fence, JobRow.sequence)).all()
        claims = Counter(session.scalars(select(HistoryRow.job_id).where(HistoryRow.what == "claimed")))
    assert set(rows) == {(1, 1, 1)}
    assert set(claims.values()) == {1}


def test_workers_whose_leases_run_out_under_them_bring_each_job_to_one_end(db: Database) -> None:
    """Eight workers; every fourth claim loses its lease while its worker still works and later reports back."""
    ids = [accepted(db) for _ in range(40)]
    kept: list[tuple[str, Stage, int]] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for job_id in rng.sample(ids, len(ids)):
            for stage in STAGES:
                claim = ledger.claim(db, job_id, stage, worker=f"worker-{seed}", lease_s=60.0, max_attempts=1000)
                if claim is None:
                    continue
                if rng.random() < 0.25:
                    with db.write() as session:
                        session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_until=now() - 1.0))
                    ledger.sweep(db, max_attempts=1000)
                if advance(db, claim):
                    kept.append((job_id, stage, claim.fence))

    while any(count for status, count in inquiry.counts(db).items() if status in ("queued", "running")):
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(work, range(8)))

    assert inquiry.counts(db)["done"] == len(ids)
    assert Counter((job_id, stage) for job_id, stage, _ in kept) == {(job_id, stage): 1 for job_id in ids for stage in STAGES}
    for job_id in ids:
        assert event_types(db, job_id) == ["job.started", "job.done"]
        happened = [row.what for row in inquiry.history(db, job_id)]
        assert happened.count("claimed") == len(STAGES) + happened.count("swept")
        assert all(pair != ("claimed", "claimed") for pair in pairwise(happened)), "two live claims at once"
