"""The figures that `/metrics` shows, read from the database when somebody asks, so that every web process shows the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from threading import Lock

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from pipeline import inquiry
from pipeline.database import Database, DeliveryRow, EndpointRow, JobRow, now
from pipeline.jobs import STAGES, Status
from webhooks.context import Context

BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SETTLED_S = 2.0
"""A job that finished this long ago has been committed, and is not missed by reading on from here."""
MOST = 5000


@cache
def registry(context: Context) -> CollectorRegistry:
    """The registry of one application. Stage times count from the process's start."""
    made = CollectorRegistry()
    stages = Histogram("unmask_stage_seconds", "Time a stage took, of jobs done.", ["stage"], buckets=BUCKETS_S, registry=None)
    made.register(_Ledger(context.database))
    made.register(_Done(context.database, stages))  # before the histogram that it fills
    made.register(stages)
    return made


class _Ledger(Collector):
    """What stands in the database now."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        standing = inquiry.standing(self._db)
        jobs = GaugeMetricFamily("unmask_jobs", "Jobs by status.", labels=["status"])
        for status, count in standing.counts.items():
            jobs.add_metric([status], count)
        yield jobs
        backlog = GaugeMetricFamily("unmask_backlog_jobs", "Queued jobs by the stage they wait for.", labels=["stage", "queue"])
        for (stage, queue), count in standing.backlog.items():
            backlog.add_metric([stage.value, queue.value], count)
        yield backlog
        yield GaugeMetricFamily("unmask_oldest_queued_seconds", "Age of the oldest queued job.", value=standing.oldest_s)
        with self._db.read() as session:
            sent = session.execute(select(DeliveryRow.status, func.count()).group_by(DeliveryRow.status)).all()
            off = session.execute(select(func.count()).select_from(EndpointRow).where(EndpointRow.disabled_at.is_not(None))).scalar_one()
        deliveries = GaugeMetricFamily("unmask_webhook_deliveries", "Webhook deliveries by status.", labels=["status"])
        by_status = {status: count for status, count in sent}  # noqa: C416
        for status in ("pending", "delivered", "failed"):
            deliveries.add_metric([status], by_status.get(status, 0))
        yield deliveries
        yield GaugeMetricFamily("unmask_webhook_endpoints_disabled", "Webhook endpoints that are disabled.", value=off)


class _Done(Collector):
    """Reads on in the jobs that finished since the last look, and puts their stage times into the histogram."""

    def __init__(self, db: Database, stages: Histogram) -> None:
        self._db = db
        self._stages = stages
        self._since = time.time()
        self._lock = Lock()

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock, self._db.read() as session:
            until = session.execute(select(now())).scalar_one() - SETTLED_S
            query = (
                select(JobRow.timings_ms, JobRow.finished_at)
                .where(JobRow.status == Status.DONE.value, JobRow.finished_at > self._since, JobRow.finished_at <= until)
                .where(JobRow.created_at > self._since - 86_400)
                .order_by(JobRow.finished_at)
                .limit(MOST)
            )
            for timings, finished_at in session.execute(query):
                self._since = max(self._since, finished_at)
                for stage in STAGES:
                    if stage.value in timings:
                        self._stages.labels(stage.value).observe(timings[stage.value] / 1000)
        return iter(())
