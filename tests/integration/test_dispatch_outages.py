"""A database that goes away under a webhook dispatcher, and comes back: nothing waits for the end of a lease, nobody is blamed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import pytest
from pydantic import SecretStr
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import migrations
from pipeline.database import Database
from pipeline.settings import Settings
from tests.fixtures.databases import PostgresServer, missing_service, postgres_binaries
from tests.fixtures.jobs import accepted, claimed
from tests.fixtures.web import Receiver
from webhooks import deliveries, endpoints, outbound
from webhooks.outbound import deliver_due, drain

SETTINGS = Settings(secret_key=SecretStr("a secret key of the tests, long enough"), webhook_allow_http=True, webhook_allow_private=True)
Start = Callable[..., Receiver]


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL of this test's own, which it may stop."""
    binaries = postgres_binaries()
    if binaries is None:
        missing_service("PostgreSQL")
        return
    own = PostgresServer(binaries)
    try:
        own.start()
        yield own
    finally:
        own.remove()


def delivered_once(db: Database, endpoint_id: str, receiver: Receiver) -> None:
    ((found,), _) = deliveries.page(db, endpoint_id=endpoint_id)
    assert (found.row.status, found.row.attempts, found.row.lease_until) == ("delivered", 1, None)
    assert [(one.status_code, one.error) for one in found.tries] == [(204, None)]
    assert endpoints.get(db, endpoint_id).failing_since is None
    assert len(receiver.got) == 1


def test_a_server_that_stops_between_claim_and_sending_is_waited_for(
    server: PostgresServer, receivers: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url.render_as_string(hide_password=False)
    migrations.upgrade(url)
    db, receiver, load = Database(url), receivers(), outbound._load
    row, _ = endpoints.register(db, SETTINGS, receiver.url)
    claimed(db, accepted(db))
    again: list[threading.Timer] = []

    def stopped(*given: object) -> object:
        if not again:
            server.stop("immediate")
            again.append(threading.Timer(1.0, server.start))
            again[0].start()
        return load(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(outbound, "_load", stopped)
    began = time.monotonic()
    with suppress(OperationalError):  # it looks for more meanwhile, and says that it cannot
        deliver_due(db, SETTINGS, patience_s=20.0)
    assert drain(20.0)
    again[0].join()
    assert time.monotonic() - began < 20, "long before the lease ends"
    delivered_once(db, row.id, receiver)
    db.dispose()


@pytest.mark.parametrize("lost", [1, 2], ids=["of the claim", "of the outcome"])
def test_a_commit_whose_answer_is_lost_is_found_again(db: Database, receivers: Start, monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    receiver, write, commits = receivers(), db.write, 0
    row, _ = endpoints.register(db, SETTINGS, receiver.url)
    claimed(db, accepted(db))

    def losing() -> AbstractContextManager[Session]:
        @contextmanager
        def wrapped() -> Iterator[Session]:
            nonlocal commits
            with write() as session:
                yield session
            commits += 1
            if commits == lost:
                raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

        return wrapped()

    monkeypatch.setattr(db, "write", losing)
    assert deliver_due(db, SETTINGS, patience_s=10.0) == 1
    assert drain(10.0)
    assert commits == 3
    delivered_once(db, row.id, receiver)


def test_a_claim_that_somebody_else_has_made_meanwhile_is_not_ours(db: Database, receivers: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try was not committed; before the second, another dispatcher came."""
    receiver, write, tries = receivers(), db.write, 0
    endpoints.register(db, SETTINGS, receiver.url)
    claimed(db, accepted(db))

    def refusing() -> AbstractContextManager[Session]:
        nonlocal tries
        tries += 1
        if tries == 1:
            monkeypatch.setattr(db, "write", write)
            assert len(outbound.claim_due(db, 8)[0]) == 1
            monkeypatch.setattr(db, "write", refusing)
            raise OperationalError("BEGIN", {}, Exception("the database system is starting up"))
        return write()

    monkeypatch.setattr(db, "write", refusing)
    assert deliver_due(db, SETTINGS, patience_s=5.0) == 0
    assert tries == 2
    assert receiver.got == []
