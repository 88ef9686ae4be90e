"""What a long backlog costs: claims, the API's lists, and the broker's memory for each message that waits."""

from __future__ import annotations

import statistics
import time
from typing import Any
from urllib.request import Request, urlopen

from redis import Redis
from sqlalchemy import func, insert, select, update

from pipeline import ledger, pauses
from pipeline.database import Database, JobRow, now
from pipeline.jobs import Queue, Stage, Status, Upload, new_id
from pipeline.settings import Settings

PAUSED = "backfill"
"""The kind of the waiting rows: nobody is to take them while it is measured."""
ROUTES = ("/v1/jobs?limit=50", "/v1/jobs?limit=50&status=queued", "/v1/jobs?limit=50&status=done", "/v1/queues")


def fill(db: Database, rows: int) -> None:
    """So many queued jobs, in a queue that is paused, as if they had been woken just now and for an hour to come."""
    pauses.pause(db, PAUSED)
    with db.write() as session:
        for start in range(0, rows, 5000):
            batch = [_row(number) for number in range(start, min(rows, start + 5000))]
            session.execute(insert(JobRow).values(woken_at=now() + 3600, created_at=now()), batch)
    if db.engine.dialect.name == "postgresql":
        with db.engine.connect() as connection:
            connection.exec_driver_sql("analyze jobs")
            connection.commit()


def empty(db: Database) -> None:
    """Call them off again."""
    with db.write() as session:
        waiting = (JobRow.queue == PAUSED, JobRow.status == Status.QUEUED.value)
        session.execute(update(JobRow).where(*waiting).values(status=Status.CANCELLED.value))
    pauses.resume(db, PAUSED)


def _row(number: int) -> dict[str, Any]:
    # as an upload, with a key, an ETag and a queue
    start = {"status": Status.QUEUED.value, "stage": Stage.EXTRACT.value, "origin": "bench", "queue": PAUSED, "timings_ms": {}}
    return {"id": new_id(), "bucket": "backlog", "key": f"2026/11/26/{number:08}.jpg", "etag": f"{number:032x}", "size": 1, **start}


def claims(db: Database, count: int) -> dict[str, float]:
    """Milliseconds of accepting, claiming and taking back a fresh job, medians."""
    taken: dict[str, list[float]] = {"accept": [], "claim": [], "due": []}
    for number in range(count):
        began = time.perf_counter()
        job_id = ledger.accept(db, Upload("backlog", f"fresh/{number}-{new_id()}.jpg", etag="e"), queue=Queue.INTERACTIVE).job_id
        accepted = time.perf_counter()
        claim = ledger.claim(db, job_id, Stage.EXTRACT, worker="bench", lease_s=60, max_attempts=3)
        claimed = time.perf_counter()
        ledger.due(db, wake_after_s=30.0)
        looked = time.perf_counter()
        assert claim is not None
        ledger.cancel(db, job_id)
        for name, span in (("accept", accepted - began), ("claim", claimed - accepted), ("due", looked - claimed)):
            taken[name].append(span * 1000)
    return {f"{name}_ms": round(statistics.median(spans), 3) for name, spans in taken.items()}


def api(settings: Settings, count: int) -> dict[str, float]:
    """Milliseconds of the API's lists, the 95th percentile of each route and of them all."""
    slowest = {}
    for route in ROUTES:
        spans = []
        for _ in range(count):
            request = Request(settings.url + route)  # noqa: S310
            if settings.api_key is not None:
                request.add_header("Authorization", f"Bearer {settings.api_key.get_secret_value()}")
            began = time.perf_counter()
            with urlopen(request, timeout=30) as answer:  # noqa: S310
                answer.read()
            spans.append((time.perf_counter() - began) * 1000)
        slowest[route] = round(sorted(spans)[int(0.95 * (len(spans) - 1))], 1)
    return slowest | {"p95_ms": max(slowest.values())}


def message_bytes(settings: Settings, count: int) -> float:
    """Bytes of the broker's memory for a message that waits: `count` are sent to a queue that nobody reads.

    What Valkey says of the queue itself: its whole memory grows and shrinks by the buffers of whoever is connected.
    """
    from workers.app import app, wake
    from workers.queues import queue_of

    waiting = queue_of(Stage.EXTRACT, Queue.BACKFILL)
    with Redis.from_url(settings.broker_url) as broker:
        before, held = int(broker.memory_usage(waiting, samples=0) or 0), int(broker.llen(waiting))
        for _ in range(count):
            wake(new_id(), Stage.EXTRACT, Queue.BACKFILL)
        grown = int(broker.memory_usage(waiting, samples=0) or 0) - before
        added = int(broker.llen(waiting)) - held
        app.pool.force_close_all()
    return round(grown / max(1, added), 1)


def waiting(db: Database) -> int:
    """How many jobs are queued."""
    with db.read() as session:
        return int(session.execute(select(func.count()).where(JobRow.status == Status.QUEUED.value)).scalar_one())
