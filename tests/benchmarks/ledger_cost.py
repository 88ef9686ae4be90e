"""What the product's own book-keeping costs: a job's whole way through the ledger, without queue, S3 or work."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from pipeline import ledger
from pipeline.database import Database
from pipeline.jobs import STAGES, Box, Face, Judgement, ModelName, Quality, Stage, Upload, Verdict, new_id
from tests.benchmarks import accounting

MODEL = ModelName("bench", "bench", "0" * 64)


def measure(db: Database, look: Callable[[], list[accounting.Process]], jobs: int, crop_px: int) -> dict[str, float]:
    """Milliseconds of processor time a job of one face: in our own programs, and in the database's server (0: it has none)."""
    crop = np.random.default_rng(1).integers(0, 256, (crop_px, crop_px, 3), np.uint8)
    face = Face(0, Box(8, 8, 200, 240), 0.9, Quality(200, 80.0), None, crop)
    for _ in range(5):
        _way(db, face)  # connections and statements are ready
    before, began, started = look(), time.process_time(), time.monotonic()
    for _ in range(jobs):
        _way(db, face)
    spent, took = time.process_time() - began, time.monotonic() - started
    database = accounting.used(before, look())["database"]
    return {
        "ours_ms": round(spent * 1000 / jobs, 2),
        "database_ms": round(database * 1000 / jobs, 2),
        "wall_ms": round(took * 1000 / jobs, 2),
        "jobs": jobs,
    }


def _way(db: Database, face: Face) -> None:
    """From the upload to the result, by the same calls that the stages make."""
    job_id = ledger.accept(db, Upload("ledger", f"{new_id()}.jpg", etag="e")).job_id
    for stage in STAGES:
        claim = ledger.claim(db, job_id, stage, worker="bench", lease_s=60, max_attempts=3)
        assert claim is not None
        if stage is Stage.EXTRACT:
            kept = ledger.extracted(db, claim, sha256="f" * 64, width=1152, height=864, faces=[face], milliseconds=1.0)
        elif stage is Stage.CLASSIFY:
            judged = [Judgement(one.index, 0.97, Verdict.MANIPULATED) for one in ledger.faces(db, job_id, crops=True)]
            kept = ledger.classified(db, claim, judged, MODEL, 1.0)
        else:
            assert ledger.faces(db, job_id)
            kept = ledger.finished(db, claim, annotated_key=f"{job_id}/annotated.png", result_key=f"{job_id}/result.json", milliseconds=1.0)
        assert kept
