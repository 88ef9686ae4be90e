"""What becomes of endpoints over time: given up with a notice, bound to an inbox, told what they missed, and well documented."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from celery.signals import worker_shutdown
from pydantic import SecretStr
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from pipeline import audit, outbox, payloads
from pipeline.database import Database, DeliveryRow, EndpointRow, EventRow, JobRow, now
from pipeline.settings import Settings
from pipeline.tables.inboxes import InboxRow
from tests.fixtures.clock import Clock
from tests.fixtures.jobs import accepted, brought_to, claimed
from tests.fixtures.web import Receiver
from webhooks import deliveries, endpoints, outbound
from webhooks.endpoints import EndpointError
from webhooks.outbound import deliver_due, deliver_one, drain
from webhooks.sending import kept_headers
from workers import upkeep  # noqa: F401  # which listens for the end of a worker

SETTINGS = Settings(secret_key=SecretStr("a secret key of the tests, long enough"), webhook_allow_http=True, webhook_allow_private=True)
Start = Callable[..., Receiver]


def inbox(db: Database, name: str) -> str:
    with db.write() as session:
        session.add(InboxRow(name=name, bucket=f"bucket-{name}", created_at=now()))
    return name


def job_of(db: Database, name: str) -> str:
    """The id of a new job that came through an inbox, and was claimed: one event."""
    job_id = accepted(db)
    with db.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(inbox=name))
    claimed(db, job_id)
    return job_id


def events_of(receiver: Receiver) -> list[dict[str, object]]:
    return [json.loads(one["body"]) for one in receiver.got]


# -- given up


@pytest.mark.parametrize("why", ["gone", "five days"])
def test_giving_up_on_an_endpoint_is_told_to_the_others_and_noted(db: Database, receivers: Start, clock: Clock, why: str) -> None:
    watching, failing = receivers(), receivers()
    endpoints.register(db, SETTINGS, watching.url, events=["endpoint.disabled"])
    row, _ = endpoints.register(db, SETTINGS, failing.url + "?token=hidden", events=["job.started"])
    failing.answer(status=410 if why == "gone" else 500)
    for _ in range(3):
        claimed(db, accepted(db))
    deliver_due(db, SETTINGS)
    if why == "five days":
        for _ in range(5):
            assert endpoints.get(db, row.id).disabled_at is None
            clock.advance(86_400.0)
            deliver_due(db, SETTINGS)
    assert drain(5.0)
    deliver_due(db, SETTINGS)

    (event,) = events_of(watching)
    data = event["data"]
    assert event["type"] == "endpoint.disabled"
    assert isinstance(data, dict)
    assert (data["endpoint_id"], data["host"], data["sequence"]) == (row.id, "127.0.0.1", 1)
    assert ("410" in data["reason"]) == (why == "gone")
    assert data["url"].endswith(f"/v1/endpoints/{row.id}")
    assert "hidden" not in json.dumps(event)
    payloads.EndpointDisabled.model_validate(data)
    assert [one.id for one in outbound.disabled(db)] == [row.id], "what the dashboard's notice is made of"
    noted, _ = audit.page(db, action="endpoint.disable", limit=5)
    assert [(one.actor, one.subject) for one in noted] == [("system", row.id)]


def test_an_endpoint_that_is_disabled_by_hand_makes_no_event(db: Database, receivers: Start) -> None:
    watching = receivers()
    endpoints.register(db, SETTINGS, watching.url)
    row, _ = endpoints.register(db, SETTINGS, receivers().url)
    endpoints.disable(db, row.id, by="user:ada")
    assert deliver_due(db, SETTINGS) == 0
    assert outbound.disabled(db) == []
    found, _ = audit.page(db, subject=row.id, limit=5)
    assert [(one.actor, one.action) for one in found] == [("user:ada", "endpoint.disable"), ("system", "endpoint.add")]


def test_an_attempt_that_cannot_be_made_counts_and_comes_again_later(
    db: Database, receivers: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours must not be repeated every 45 seconds for ever."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    row, _ = endpoints.register(db, SETTINGS, receivers().url)
    claimed(db, accepted(db))
    monkeypatch.setattr("webhooks.outbound.send", broken)
    assert deliver_due(db, SETTINGS) == 1
    assert drain(5.0)
    ((found,), _) = deliveries.page(db, endpoint_id=row.id)
    assert found.tries[0].error == "The attempt could not be made (ZeroDivisionError); the log says why."
    assert (found.row.status, found.row.lease_until) == ("pending", None)
    with db.read() as session:
        assert found.row.next_attempt_at is not None
        assert found.row.next_attempt_at > session.execute(select(now())).scalar_one() + 2


def test_what_is_lost_again_and_again_is_given_up(db: Database, receivers: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that the database fails over, or that ends its dispatcher, comes up when its lease is over, but not for ever."""

    def away(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("could not read block 7"))

    monkeypatch.setattr(outbound, "_load", away)
    monkeypatch.setattr(outbound, "AWAY_S", 0.0)
    receiver = receivers()
    row, _ = endpoints.register(db, SETTINGS, receiver.url)
    claimed(db, accepted(db))
    with db.write() as session:
        session.execute(update(DeliveryRow).values(attempts=outbound.MOST_CLAIMS - 1))
    for status in ("pending", "failed"):
        with db.write() as session:
            session.execute(update(DeliveryRow).values(lease_until=None))
        assert deliver_due(db, SETTINGS) == 1
        assert drain(10.0)
        ((found,), _) = deliveries.page(db, endpoint_id=row.id)
        assert found.row.status == status
    assert [one.error for one in found.tries] == ["It is given up: of 20 attempts too many ended without anything written down."]
    assert receiver.got == []


def test_a_worker_that_stops_waits_for_what_is_in_the_air(db: Database, receivers: Start) -> None:
    receiver = receivers()
    receiver.answer(hang=1.5)
    row, _ = endpoints.register(db, SETTINGS, receiver.url)
    claimed(db, accepted(db))
    assert deliver_due(db, SETTINGS, patience_s=0.0) == 1
    worker_shutdown.send(sender=None)
    ((found,), _) = deliveries.page(db, endpoint_id=row.id)
    assert (found.row.status, len(receiver.got)) == ("delivered", 1)


def test_a_crowd_of_hanging_receivers_leaves_room_for_the_others(db: Database, receivers: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight hang, enough to take all 32 threads with four requests each; the ninth does not wait for them."""
    receiver = receivers()
    receiver.answer(hang=6, paths={"/8": {"hang": 0}})
    for number in range(9):
        endpoints.register(db, SETTINGS, f"{receiver.url.removesuffix('/hook')}/{number}")
    for _ in range(5):
        claimed(db, accepted(db))
    began = time.monotonic()
    deliver_due(db, SETTINGS, patience_s=4.0)
    assert len([one for one in receiver.got if one["path"] == "/8"]) == 5
    arrived = max(one["at"] for one in receiver.got if one["path"] == "/8")
    assert arrived - (time.time() - (time.monotonic() - began)) < 4
    assert 16 <= len([one for one in receiver.got if one["path"] != "/8"]) <= 24
    receiver.stop()
    assert drain(15.0)


# -- inboxes


def test_an_endpoint_of_an_inbox_hears_of_its_jobs_only(db: Database, receivers: Start) -> None:
    everything, of_a = receivers(), receivers()
    for name in ("a", "b"):
        inbox(db, name)
    endpoints.register(db, SETTINGS, everything.url)
    row, _ = endpoints.register(db, SETTINGS, of_a.url, inbox="a")
    jobs = {name: job_of(db, name) for name in ("a", "b", "default")}
    with db.write() as session:
        outbox.announce(session, "drift.alarm", "drift", 1, {"sequence": 1})
    deliver_due(db, SETTINGS)
    assert [event["data"]["job_id"] for event in events_of(of_a)] == [jobs["a"]]  # type: ignore[index]
    assert len(everything.got) == 4
    assert deliveries.replay(db, row.id, since=0.0) == 1, "a replay gives it no more than that"


def test_who_is_bound_to_inboxes_sees_and_touches_only_their_endpoints(db: Database, receivers: Start) -> None:
    for name in ("a", "b"):
        inbox(db, name)
    url = receivers().url
    all_of_them, _ = endpoints.register(db, SETTINGS, url)
    of_a, _ = endpoints.register(db, SETTINGS, url, inboxes={"a"})
    assert of_a.inbox == "a", "whoever is bound to one need not name it"
    with pytest.raises(EndpointError, match="Name the inbox"):
        endpoints.register(db, SETTINGS, url, inboxes={"a", "b"})
    with pytest.raises(EndpointError, match="Name the inbox"):
        endpoints.register(db, SETTINGS, url, inbox="b", inboxes={"a"})
    job_of(db, "a")
    assert [row.id for row in endpoints.all_of_them(db, {"a"})] == [of_a.id]
    with db.write() as session:
        session.execute(update(EndpointRow).values(failing_since=now(), disabled_at=now()))
    assert ({row.id for row in outbound.disabled(db)}, [row.id for row in outbound.disabled(db, {"a"})]) == (
        {all_of_them.id, of_a.id},
        [of_a.id],
    )
    for row in (all_of_them, of_a):
        endpoints.enable(db, row.id)
    mine, _ = deliveries.page(db, inboxes={"a"})
    everybodys, _ = deliveries.page(db)
    assert ([one.row.endpoint_id for one in mine], len(everybodys)) == ([of_a.id], 2)
    others = next(one for one in everybodys if one.row.endpoint_id == all_of_them.id)
    for deed in (
        lambda: endpoints.get(db, all_of_them.id, {"a"}),
        lambda: endpoints.rotate(db, SETTINGS, all_of_them.id, {"a"}),
        lambda: endpoints.disable(db, all_of_them.id, inboxes={"a"}),
        lambda: endpoints.enable(db, all_of_them.id, {"a"}),
        lambda: endpoints.remove(db, all_of_them.id, {"a"}),
        lambda: endpoints.change(db, all_of_them.id, events=[], inboxes={"a"}),
        lambda: endpoints.add_test(db, all_of_them.id, {"a"}),
        lambda: deliveries.get(db, others.row.id, {"a"}),
        lambda: deliveries.redeliver(db, others.row.id, {"a"}),
        lambda: deliveries.replay(db, all_of_them.id, since=0.0, inboxes={"a"}),
    ):
        with pytest.raises(EndpointError) as told:
            deed()
        assert told.value.missing


# -- what was missed


def test_a_replay_brings_what_was_missed_with_the_same_ids(db: Database, receivers: Start, clock: Clock) -> None:
    """Before it was registered, while it was disabled, what failed, what arrived: each event of the range, and no other."""
    receiver = receivers()
    early, since = brought_to(db, None), clock.time()
    clock.advance(60.0)
    before = brought_to(db, None)
    row, secret = endpoints.register(db, SETTINGS, receiver.url, events=["job.done"])
    taken = brought_to(db, None)
    receiver.answer(secret=secret)
    deliver_due(db, SETTINGS)
    endpoints.disable(db, row.id)
    missed = brought_to(db, None)
    with pytest.raises(EndpointError, match="enable it first"):
        deliveries.replay(db, row.id, since=since)
    endpoints.enable(db, row.id)
    endpoints.add_test(db, row.id)
    deliver_due(db, SETTINGS)
    until = clock.time()
    clock.advance(60.0)
    late = brought_to(db, None)
    deliver_due(db, SETTINGS)
    assert [one["data"]["job_id"] for one in events_of(receiver) if one["type"] == "job.done"] == [taken, late]  # type: ignore[index]

    told = len(receiver.got)
    assert deliveries.replay(db, row.id, since=since, until=until, undelivered=True) == 2
    deliver_due(db, SETTINGS)
    assert {event["data"]["job_id"] for event in events_of(receiver)[told:]} == {before, missed}  # type: ignore[index]
    told = len(receiver.got)
    assert deliveries.replay(db, row.id, since=since, until=until) == 4, "with the test that it got"
    deliver_due(db, SETTINGS)
    again = events_of(receiver)[told:]
    assert {event["data"]["job_id"] for event in again if event["type"] == "job.done"} == {before, taken, missed}  # type: ignore[index]
    assert early not in json.dumps(events_of(receiver))
    assert all(one["verified"] for one in receiver.got)
    with db.read() as session:
        assert {one["id"] for one in receiver.got} <= set(session.scalars(select(EventRow.id)))
    assert deliveries.replay(db, row.id, since=since, until=until, undelivered=True) == 0


def test_two_replays_at_once_bring_everything_once(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    if db.engine.dialect.name == "sqlite":
        pytest.skip("writers are alone there")
    for _ in range(3):
        claimed(db, accepted(db))
    row, _ = endpoints.register(db, SETTINGS, "https://example.com/hooks")
    wants, other = outbox.wants, []

    def in_between(*given: object) -> bool:
        monkeypatch.setattr(outbox, "wants", wants)
        other.append(deliveries.replay(db, row.id, since=0.0))
        return wants(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(outbox, "wants", in_between)
    assert (deliveries.replay(db, row.id, since=0.0), other) == (3, [3])
    with db.read() as session:
        assert len(session.scalars(select(DeliveryRow)).all()) == 3


def test_an_endpoint_that_is_removed_while_it_is_told_again_is_missing(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    if db.engine.dialect.name == "sqlite":
        pytest.skip("writers are alone there")
    claimed(db, accepted(db))
    row, _ = endpoints.register(db, SETTINGS, "https://example.com/hooks")
    wants = outbox.wants

    def in_between(*given: object) -> bool:
        endpoints.remove(db, row.id)
        return wants(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(outbox, "wants", in_between)
    with pytest.raises(EndpointError, match="no endpoint"):
        deliveries.replay(db, row.id, since=0.0)


def test_a_replay_of_many_events_goes_in_parts(db: Database, receivers: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "AT_ONCE", 4)
    ids = [brought_to(db, None) for _ in range(5)]
    row, _ = endpoints.register(db, SETTINGS, receivers().url)
    assert deliveries.replay(db, row.id, since=0.0) == 10
    assert deliveries.replay(db, row.id, since=0.0) == 10, "and makes none twice"
    with db.read() as session:
        found = session.execute(select(EventRow.subject, DeliveryRow.status).join(DeliveryRow, DeliveryRow.event_id == EventRow.id)).all()
    assert sorted(found) == sorted((job_id, "pending") for job_id in ids * 2)


def test_another_filter_holds_from_then_on(db: Database, receivers: Start) -> None:
    row, _ = endpoints.register(db, SETTINGS, receivers().url, events=["job.failed"])
    brought_to(db, None)
    endpoints.change(db, row.id, events=["job.done"], description=" for the archive\0 ", by="user:ada")
    brought_to(db, None)
    found, _ = deliveries.page(db, endpoint_id=row.id)
    assert [one.event.type for one in found] == ["job.done"]
    assert endpoints.get(db, row.id).description == "for the archive"
    with pytest.raises(EndpointError, match="There is no event"):
        endpoints.change(db, row.id, events=["job.lost"])
    assert deliveries.page(db, event_type="job.done")[0][0].row.id == found[0].row.id
    assert deliveries.page(db, event_type="job.failed")[0] == []


# -- the log


def test_the_log_has_every_attempt_with_its_headers_and_the_beginning_of_the_answer(db: Database, receivers: Start) -> None:
    receiver = receivers()
    row, _ = endpoints.register(db, SETTINGS, receiver.url)
    receiver.answer(status=500, headers={"X-Why": "out of order", "Set-Cookie": "session=secret", "X-Long": "x" * 2000}, body="é" * 5000)
    claimed(db, accepted(db))
    deliver_due(db, SETTINGS)
    receiver.stop()
    with db.write() as session:
        session.execute(update(DeliveryRow).values(next_attempt_at=now()))
    deliver_due(db, SETTINGS)
    assert drain(5.0)

    ((found,), _) = deliveries.page(db, endpoint_id=row.id)
    answered, refused = found.tries
    sent, heard = answered.request_headers, answered.response_headers
    assert sent is not None
    assert heard is not None
    assert sent["webhook-id"] == found.event.id == receiver.got[0]["id"]
    assert sent["webhook-signature"] == receiver.got[0]["signature"]
    assert sent["User-Agent"] == "Unmask-Webhooks/1"
    assert (heard["X-Why"], heard["Set-Cookie"], len(heard["X-Long"])) == ("out of order", "…", 500)
    assert answered.response is not None
    assert answered.response.startswith("ééé")
    assert len(answered.response.encode()) <= 4100
    assert (refused.status_code, refused.request_headers, refused.response_headers) == (None, None, None)
    assert refused.error == "The connection to 127.0.0.1 failed."


def test_headers_without_end_are_cut() -> None:
    kept = kept_headers({f"X-{number}": "a\0b" for number in range(500)})
    assert len(kept) == 50
    assert set(kept.values()) == {"ab"}


@contextmanager
def hostile(*parts: bytes, times: int = 1) -> Iterator[str]:
    """The URL of a server that answers every request with these bytes, the last of them so many times."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(65536)
                    for part in (*parts, *[parts[-1]] * (times - 1)):
                        connection.sendall(part)
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "a body without end": ((OK + b"\r\n", b"x" * 65536), 2000, 200),
    "a chunk without end": ((OK + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n", b"x" * 65536), 2000, 200),
    "a bomb": ((OK + b"Content-Encoding: gzip\r\n\r\n", b"\x1f\x8b\x08\0\0\0\0\0\0\0"), 1, 200),
    "headers without end": ((OK, b"X-A: " + b"a" * 1000 + b"\r\n"), 500, None),
    "a header without end": ((OK + b"X-A: ", b"a" * 65536), 100, None),
    "one continue after another": ((b"HTTP/1.1 100 Continue\r\n\r\n",), 300, None),
    "a status there is not": ((b"HTTP/1.1 999999999999 X\r\n\r\n",), 1, None),
    "a status that is negative": ((b"HTTP/1.1 -200 X\r\n\r\n",), 1, None),
    "a lengthy lie": ((OK + b"Content-Length: 999999999999999999\r\n\r\n",), 1, 200),
    "a nonsensical length": ((OK + b"Content-Length: many\r\n\r\n",), 1, 200),
    "headers that are none": ((OK + b"\xff\xfe\0: \0\r\nno header\r\n\r\n",), 1, 200),
    "a patience without end": ((b"HTTP/1.1 503 X\r\nRetry-After: " + b"9" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n",), 1, 503),
    "a date that never was": ((b"HTTP/1.1 503 X\r\nRetry-After: Mon, 99 Foo 99999 99:99:99 GMT\r\nContent-Length: 0\r\n\r\n",), 1, 503),
    "a date before all": ((b"HTTP/1.1 503 X\r\nRetry-After: Mon, 01 Jan 0001 00:00:00 -0000\r\nContent-Length: 0\r\n\r\n",), 1, 503),
    "NULs": ((b"HTTP/1.1 500 X\r\nContent-Length: 6\r\n\r\n\0a\0b\0c",), 1, 500),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_whatever_a_receiver_answers_is_written_down(db: Database, what: str) -> None:
    """And takes no time and no memory worth naming."""
    parts, times, status = ANSWERS[what]
    with hostile(*parts, times=times) as url:
        row, _ = endpoints.register(db, SETTINGS, url)
        began = time.monotonic()
        answer = deliver_one(db, SETTINGS, endpoints.add_test(db, row.id))
        assert time.monotonic() - began < 10
    ((found,), _) = deliveries.page(db, endpoint_id=row.id)
    (attempt,) = found.tries
    assert answer is not None
    assert attempt.status_code == answer.status_code == status
    assert (attempt.error is None) == (status == 200)
    assert len(attempt.response or "") <= 4096
    assert len(json.dumps(attempt.response_headers)) < 40_000
    assert found.row.status == ("delivered" if status == 200 else "pending")
