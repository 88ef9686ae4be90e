"""Connections to the database belong to one process, and one whose other side is gone is given up."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest
from sqlalchemy import func, select

from pipeline import database as databases
from pipeline.database import Database, JobRow, database


@pytest.fixture
def ours(db: Database) -> Iterator[Database]:
    """The process's own."""
    url = db.engine.url.render_as_string(hide_password=False)
    yield database(url)
    databases._known.pop(url).dispose()


def session_of(db: Database) -> int:
    """Uses the connection; on PostgreSQL, the process at its other end."""
    with db.write() as session:
        session.execute(select(func.count()).select_from(JobRow)).scalar_one()
        if db.engine.dialect.name != "postgresql":
            return os.getpid()
        return int(session.execute(select(func.pg_backend_pid())).scalar_one())


def test_a_forked_process_has_connections_of_its_own(ours: Database) -> None:
    url = ours.engine.url.render_as_string(hide_password=False)
    before = [session_of(ours) for _ in range(10)]
    children = []
    for _ in range(3):
        read, write = os.pipe()
        if (child := os.fork()) == 0:  # as a pool of Celery's does, one after the other; it ends without tidying up
            try:
                own = database(url)
                said = {"own": own is not ours, "sessions": [session_of(own) for _ in range(10)]}
                os.write(write, json.dumps(said).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as told:
            children.append(json.loads(told.read()))
        os.waitpid(child, 0)

    assert all(child["own"] for child in children)
    used = [set(before), *(set(child["sessions"]) for child in children)]
    assert len(set.union(*used)) == sum(len(one) for one in used) == 4
    assert session_of(ours) in used[0]
    assert database(url) is ours


@pytest.mark.parametrize(
    ("option", "value"),
    [(socket.TCP_USER_TIMEOUT, 15_000), (socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 2)],
)
def test_a_server_that_is_gone_is_given_up(emptied_postgresql_url: str, option: int, value: int) -> None:
    """What the kernel is told. That it then ends a connection whose packets are dropped is the kernel's to keep."""
    with database(emptied_postgresql_url).read() as session:
        raw = session.connection().connection.driver_connection
        assert raw is not None
        with socket.socket(fileno=os.dup(raw.pgconn.socket)) as one:
            assert one.getsockopt(socket.IPPROTO_TCP, option) == value
