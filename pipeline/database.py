"""The tables, and how a transaction is opened. SQLite (WAL) and PostgreSQL behave alike from here on up.

Times are seconds since the epoch, UTC, as floats: both databases compare them the same way. Where a decision hangs on
the time (leases, due deliveries) it is the database's clock that counts, so one worker's wrong clock steals nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.sql.expression import FunctionElement

from pipeline import faults

PROVEN_S = 1.0
"""A connection used so short a time ago is taken to live."""
AWAY = (OperationalError, InterfaceError, PoolTimeout)
"""What is raised where the database is away, restarts, or has no connection left."""
INSIST_S = 0.5


class now(FunctionElement[float]):
    """The database's clock, in seconds since the epoch; moves on within a transaction."""

    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite_now(element: Any, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgresql_now(element: Any, compiler: Any, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, float: Float(53)}


class JobRow(Base):
    """One upload and what became of it. Every change of state goes through the ledger."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("bucket", "key", "version_id", "etag", "sequencer", name="uq_jobs_upload"),
        Index("ix_jobs_due", "status", "next_attempt_at"),
        Index("ix_jobs_lease", "status", "lease_until"),
        Index("ix_jobs_woken", "status", "woken_at"),
        Index("ix_jobs_page", "created_at", "id"),
        Index("ix_jobs_inbox", "inbox", "created_at", "id"),
        Index("ix_jobs_object", "bucket", "key"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    bucket: Mapped[str] = mapped_column(String(255))
    key: Mapped[str] = mapped_column(Text)
    version_id: Mapped[str] = mapped_column(String(255), default="")
    etag: Mapped[str] = mapped_column(String(255), default="")
    sequencer: Mapped[str] = mapped_column(String(255), default="")
    size: Mapped[int] = mapped_column(BigInteger, default=0)
    origin: Mapped[str] = mapped_column(String(32))
    inbox: Mapped[str] = mapped_column(String(64), default="default", server_default="default")
    """Which inbox it came through: whose settings apply, and who may see it."""
    queue: Mapped[str] = mapped_column(String(16))

    status: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str] = mapped_column(String(16))
    fence: Mapped[int] = mapped_column(default=0)
    """Grows with every claim; a write with an older fence changes nothing."""
    attempts: Mapped[int] = mapped_column(default=0)
    """Of the present stage, counted before the work begins."""
    worker: Mapped[str] = mapped_column(String(255), default="")
    lease_until: Mapped[float | None]
    next_attempt_at: Mapped[float | None]
    """Not to be claimed before."""
    woken_at: Mapped[float] = mapped_column(default=0.0)
    """When a message for it was last sent; 0: never, or it is known to be lost."""

    verdict: Mapped[str | None] = mapped_column(String(16))
    score: Mapped[float | None]
    reason: Mapped[str | None] = mapped_column(Text)
    """Of a verdict `not_applicable`: `no_face` and so on. Of a refused or failed job: one sentence."""
    error: Mapped[str | None] = mapped_column(Text)
    """Class and traceback of the last failure, for operators."""

    sha256: Mapped[str | None] = mapped_column(String(64))
    width: Mapped[int | None]
    height: Mapped[int | None]
    model_name: Mapped[str | None] = mapped_column(String(255))
    model_version: Mapped[str | None] = mapped_column(String(64))
    model_sha256: Mapped[str | None] = mapped_column(String(64))
    annotated_key: Mapped[str | None] = mapped_column(Text)
    result_key: Mapped[str | None] = mapped_column(Text)
    timings_ms: Mapped[dict[str, Any]] = mapped_column(default=dict)
    sequence: Mapped[int] = mapped_column(default=0)
    """Of the webhook events about this job; grows by one with each."""
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class FaceRow(Base):
    """One detected face of a job. `crop` is there only between extraction and the job's end."""

    __tablename__ = "faces"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    x: Mapped[int]
    y: Mapped[int]
    w: Mapped[int]
    h: Mapped[int]
    detection: Mapped[float]
    size: Mapped[int]
    blur: Mapped[float]
    blocks: Mapped[float | None]
    """Null: the face was found before they were measured."""
    crop: Mapped[bytes | None] = mapped_column(LargeBinary)
    """(size, size, 3) uint8 RGB, row by row."""
    score: Mapped[float | None]
    verdict: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(32))
    evidence: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class HistoryRow(Base):
    """What happened to a job, in order; only ever appended to."""

    __tablename__ = "history"
    __table_args__ = (Index("ix_history_job", "job_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    at: Mapped[float]
    what: Mapped[str] = mapped_column(String(32))
    """`accepted claimed advanced retried swept done failed refused source_gone cancelled requeued`."""
    stage: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str] = mapped_column(String(255), default="")
    detail: Mapped[str] = mapped_column(Text, default="")


class EndpointRow(Base):
    """A registered webhook receiver. Secrets are encrypted with the product's secret key."""

    __tablename__ = "endpoints"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text, default="")
    events: Mapped[list[str]] = mapped_column(JSON, default=list)
    """Event types it wants; empty: all."""
    inbox: Mapped[str | None] = mapped_column(String(64))
    """Only events of this inbox; None: of all, and those that are of none."""
    secret: Mapped[str] = mapped_column(Text)
    previous_secret: Mapped[str | None] = mapped_column(Text)
    previous_until: Mapped[float | None]
    failing_since: Mapped[float | None]
    throttled_until: Mapped[float | None]
    """The receiver asked to be left alone until then: nothing is sent to it, whatever is due."""
    disabled_at: Mapped[float | None]
    disabled_reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float]


class EventRow(Base):
    """A webhook event, written in the transaction of the state change it tells of. `id` is the `webhook-id`."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("subject", "sequence", name="uq_events_sequence"), Index("ix_events_created", "created_at"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    type: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(64))
    """The id of the job (or training, or model) it is about."""
    sequence: Mapped[int]
    inbox: Mapped[str | None] = mapped_column(String(64))
    """The inbox that it is about; None: it is about the whole product, such as a promotion."""
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[float]


class DeliveryRow(Base):
    """One event on its way to one endpoint."""

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("event_id", "endpoint_id", name="uq_deliveries_event_endpoint"),
        Index("ix_deliveries_due", "endpoint_id", "status", "next_attempt_at"),
        Index("ix_deliveries_lease", "status", "lease_until"),
        Index("ix_deliveries_log", "endpoint_id", "id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    event_id: Mapped[str] = mapped_column(ForeignKey("events.id", ondelete="CASCADE"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("endpoints.id", ondelete="CASCADE"))
    status: Mapped[str] = mapped_column(String(16))
    """`pending delivered failed`."""
    attempts: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[float | None]
    next_attempt_at: Mapped[float | None]
    created_at: Mapped[float]
    delivered_at: Mapped[float | None]


class DeliveryAttemptRow(Base):
    """One HTTP request of a delivery, and what came back."""

    __tablename__ = "delivery_attempts"
    __table_args__ = (Index("ix_delivery_attempts_delivery", "delivery_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    delivery_id: Mapped[str] = mapped_column(ForeignKey("deliveries.id", ondelete="CASCADE"))
    at: Mapped[float]
    status_code: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    duration_ms: Mapped[float]
    request_headers: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """As sent, the signature included; None: nothing was sent."""
    response_headers: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """The first of those that came back, long ones cut; None: nothing came."""
    response: Mapped[str | None] = mapped_column(Text)
    """The beginning of the answer's body."""


class ModelRow(Base):
    """A published model version. `files` maps file name to sha256; nothing is opened before it is checked against it."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    files: Mapped[dict[str, Any]]
    card: Mapped[dict[str, Any]]
    signature: Mapped[str | None] = mapped_column(Text)
    """Over name, version and files, by this installation's key; a row without one is not used."""
    created_at: Mapped[float]


class AliasRow(Base):
    """`champion` and `candidate`: which version is meant. `previous` is what a rollback returns to."""

    __tablename__ = "aliases"

    alias: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    version: Mapped[str] = mapped_column(String(64))
    previous_name: Mapped[str | None] = mapped_column(String(255))
    previous_version: Mapped[str | None] = mapped_column(String(64))
    changed_at: Mapped[float]


class PauseRow(Base):
    """A queue that a person has paused: its jobs stay queued until it is resumed."""

    __tablename__ = "pauses"

    queue: Mapped[str] = mapped_column(String(32), primary_key=True)
    paused_at: Mapped[float]


Result = TypeVar("Result")


def insistently(work: Callable[[bool], Result], seconds: float) -> Result:
    """Do it, and again every half second while the database is away, for so many seconds; then the error is raised.

    `work(again)`: with `again` set, an earlier try may have been committed, though its answer was lost.
    """
    until, again = time.monotonic() + seconds, False
    while True:
        try:
            return work(again)
        except AWAY:
            if time.monotonic() + INSIST_S > until:
                raise
        again = True
        time.sleep(INSIST_S)


class Database:
    """An engine and the two ways to open a transaction on it. Safe to share between threads; make it after a fork."""

    def __init__(self, url: str) -> None:
        self.engine: Engine = _engine(url)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading; nothing is committed."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at the end of the block and rolls back on any error.

        On SQLite it takes the write lock at once (BEGIN IMMEDIATE), so a read made in it stays true until it commits.
        """
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            if self.engine.dialect.name == "sqlite":
                session.connection(execution_options={"unmask_immediate": True})
            yield session
            faults.point("commit")
        faults.point("committed")

    def dispose(self) -> None:
        """Close the pool."""
        self.engine.dispose()


SILENCE = {"connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 2, "tcp_user_timeout": 15_000}
"""A PostgreSQL whose machine is gone does not even say so: given up after some 15 s, not after hours. A long statement does not count."""


def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return _proven(create_engine(url, pool_size=5, max_overflow=20, pool_recycle=1800, connect_args=SILENCE))
    if (path := make_url(url).database) and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver must not open transactions of its own: see _begin
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # Writers open with BEGIN IMMEDIATE: a deferred transaction that turns into a writer late fails with SQLITE_BUSY.
        immediate = connection.get_execution_options().get("unmask_immediate")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _proven(engine: Engine) -> Engine:
    """Ask a connection that was idle for a while whether it still lives; before each use it would be a round trip too many."""

    @event.listens_for(engine, "checkin")
    def _used(connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _ask(connection: Any, record: Any, proxy: Any) -> None:
        if time.monotonic() - record.info.get("used", time.monotonic()) < PROVEN_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError from error  # the pool opens another one

    return engine


_known: dict[str, Database] = {}
_kept: list[Database] = []  # in a forked process, too: were they closed there, the parent's sessions would end


def database(url: str) -> Database:
    """The process's one Database for a URL. A process that is forked gets its own: a connection is one process's."""
    if url not in _known:
        _kept.append(_known.setdefault(url, Database(url)))
    return _known[url]


os.register_at_fork(after_in_child=_known.clear)
