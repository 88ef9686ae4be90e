"""What a long backlog costs: claims, the API, the sweeper, and the broker's memory for each message that waits.

In two forms: rows that wait with a message each, in a paused queue; and rows all overdue, as after the broker lost everything.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any
from urllib.request import Request, urlopen

from redis import Redis
from sqlalchemy import func, insert, select, update

from pipeline import inquiry, ledger, pauses
from pipeline.database import Database, JobRow, now
from pipeline.jobs import Queue, Stage, Status, Upload, new_id
from pipeline.settings import Settings

PAUSED = "backfill"
"""The kind of the waiting rows: nobody is to take them while it is measured."""
BUCKET = "backlog"
LATE_S = 3600.0
ROUTES = ("/v1/jobs?limit=50", "/v1/jobs?limit=50&status=queued", "/v1/jobs?limit=50&status=done", "/v1/queues")


def fill(db: Database, rows: int) -> None:
    """So many queued jobs, in a queue that is paused, as if they had been woken just now and for an hour to come."""
    pauses.pause(db, PAUSED)
    _insert(db, rows, PAUSED, now() + LATE_S)
    _analyze(db)


def _insert(db: Database, rows: int, queue: str, woken_at: Any) -> None:
    with db.write() as session:
        for start in range(0, rows, 5000):
            batch = [_row(number, queue) for number in range(start, min(rows, start + 5000))]
            session.execute(insert(JobRow).values(woken_at=woken_at, created_at=now()), batch)


def _analyze(db: Database) -> None:
    if db.engine.dialect.name == "postgresql":
        with db.engine.connect() as connection:
            connection.exec_driver_sql("analyze jobs")
            connection.commit()


def empty(db: Database) -> None:
    """Call them off again."""
    _cancel(db, PAUSED)
    pauses.resume(db, PAUSED)


def _cancel(db: Database, queue: str) -> None:
    with db.write() as session:
        waiting = (JobRow.queue == queue, JobRow.bucket == BUCKET, JobRow.status == Status.QUEUED.value)
        session.execute(update(JobRow).where(*waiting).values(status=Status.CANCELLED.value))


def _row(number: int, queue: str) -> dict[str, Any]:
    # as an upload, with a key, an ETag and a queue
    start = {"status": Status.QUEUED.value, "stage": Stage.EXTRACT.value, "origin": "bench", "queue": queue, "timings_ms": {}}
    return {"id": new_id(), "bucket": BUCKET, "key": f"2026/11/26/{queue}/{number:08}.jpg", "etag": f"{number:032x}", "size": 1, **start}


def claims(db: Database, count: int, *, wake_after_s: float = 30.0) -> dict[str, float]:
    """Milliseconds of accepting, claiming and taking back a fresh job, medians. `wake_after_s`: what counts as overdue for `due`."""
    taken: dict[str, list[float]] = {"accept": [], "claim": [], "due": []}
    for number in range(count):
        began = time.perf_counter()
        job_id = ledger.accept(db, Upload(BUCKET, f"fresh/{number}-{new_id()}.jpg", etag="e"), queue=Queue.INTERACTIVE).job_id
        accepted = time.perf_counter()
        claim = ledger.claim(db, job_id, Stage.EXTRACT, worker="bench", lease_s=60, max_attempts=3)
        claimed = time.perf_counter()
        ledger.due(db, wake_after_s=wake_after_s)
        looked = time.perf_counter()
        assert claim is not None
        ledger.cancel(db, job_id)
        for name, span in (("accept", accepted - began), ("claim", claimed - accepted), ("due", looked - claimed)):
            taken[name].append(span * 1000)
    return {f"{name}_ms": round(statistics.median(spans), 3) for name, spans in taken.items()}


def overdue(db: Database, settings: Settings, rows: int, count: int) -> dict[str, Any]:
    """The second form: so many jobs that nobody holds a message for. What a pass of the sweeper takes and wakes, claims, and the API.

    No worker may run meanwhile: their objects do not exist. Each pass wakes some of them, in the broker too.
    """
    _insert(db, rows, Queue.BULK.value, now() - LATE_S)
    _analyze(db)
    one, deep = _middle(db, rows)
    more = {"/v1/jobs/{id}": f"/v1/jobs/{one}", "/v1/jobs, page in the middle": f"/v1/jobs?limit=50&after={deep}", "/metrics": "/metrics"}
    figures = {"rows": waiting(db), "api": api(settings, count // 4, more)}
    figures["claims"] = claims(db, count, wake_after_s=2 * LATE_S)  # its own look finds none: that is the passes' business
    figures["sweeper"] = _passes(db, settings, max(3, count // 20))
    _cancel(db, Queue.BULK.value)
    return figures


def _middle(db: Database, rows: int) -> tuple[str, str]:
    """A job that has half of the rows before it in the list, and the cursor of the page behind it."""
    after, page = None, []
    for _ in range(max(1, rows // 2 // inquiry.MAX_PAGE)):
        page, after = inquiry.page(db, after=after, limit=inquiry.MAX_PAGE)
    assert after is not None
    return page[-1].id, after


def _passes(db: Database, settings: Settings, count: int) -> dict[str, float]:
    """Medians of so many passes: rows woken, milliseconds with the messages that are sent, and those of looking alone."""
    from workers import upkeep

    woken, spans, looks = [], [], []
    for _ in range(count):
        began = time.perf_counter()
        woken.append(upkeep.wake_due(db, settings))
        swept = time.perf_counter()
        ledger.due(db, wake_after_s=settings.wake_after_s, limit=upkeep.WAKE_AT_MOST, queue=Queue.BULK)
        looks.append((time.perf_counter() - swept) * 1000)
        spans.append((swept - began) * 1000)
    medians = {"woken": woken, "pass_ms": spans, "due_ms": looks}
    return {name: round(statistics.median(values), 1) for name, values in medians.items()} | {"passes": count}


def api(settings: Settings, count: int, more: Mapping[str, str] | None = None) -> dict[str, float]:
    """Milliseconds of the API's lists, and of `more` routes by name: the 95th percentile of each one and of the slowest."""
    slowest = {}
    for name, route in ({route: route for route in ROUTES} | dict(more or {})).items():
        spans = []
        for _ in range(count):
            request = Request(settings.url + route)  # noqa: S310
            if settings.api_key is not None:
                request.add_header("Authorization", f"Bearer {settings.api_key.get_secret_value()}")
            began = time.perf_counter()
            with urlopen(request, timeout=30) as answer:  # noqa: S310
                answer.read()
            spans.append((time.perf_counter() - began) * 1000)
        slowest[name] = round(sorted(spans)[int(0.95 * (len(spans) - 1))], 1)
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
