"""Webhooks on both databases, to receivers that run in processes of their own and verify with the users' library."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from email.utils import formatdate

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select, update

from pipeline import outbox
from pipeline.database import Database, DeliveryAttemptRow, DeliveryRow, EndpointRow, EventRow, JobRow, now
from pipeline.jobs import Stage
from pipeline.settings import Settings
from tests.fixtures.clock import Clock
from tests.fixtures.jobs import accepted, advance, brought_to, claimed
from tests.fixtures.web import Receiver
from webhooks import deliveries as log
from webhooks import endpoints
from webhooks.claiming import LEASE_S, PER_ENDPOINT, claim_due
from webhooks.endpoints import EndpointError
from webhooks.outbound import deliver_due, deliver_one, drain
from webhooks.outcomes import SCHEDULE_S, record
from webhooks.secretbox import SecretError, new_secret, seal
from webhooks.sending import Answer

SETTINGS = Settings(
    secret_key=SecretStr("a secret key of the tests, long enough"),
    webhook_allow_http=True,
    webhook_allow_private=True,
    public_url="https://unmask.example",
)
Start = Callable[[], Receiver]


def registered(db: Database, receiver: Receiver, **how: object) -> str:
    """The id of an endpoint for a receiver that verifies with its secret."""
    row, secret = endpoints.register(db, SETTINGS, receiver.url)
    receiver.answer(secret=secret, **how)
    return row.id


def deliveries(db: Database) -> list[DeliveryRow]:
    with db.read() as session:
        return list(session.scalars(select(DeliveryRow).order_by(DeliveryRow.id)))


def make_due(db: Database) -> None:
    with db.write() as session:
        session.execute(update(DeliveryRow).where(DeliveryRow.status == "pending").values(next_attempt_at=now() - 1))


def expire_leases(db: Database) -> None:
    with db.write() as session:
        session.execute(update(DeliveryRow).values(lease_until=now() - 1))


def seconds_until_next(db: Database, row: DeliveryRow) -> float:
    with db.read() as session:
        at = session.execute(select(now())).scalar_one()
        return session.get_one(DeliveryRow, row.id).next_attempt_at - at  # type: ignore[operator]


def test_a_job_that_ends_is_told_signed_in_order_of_sequence(db: Database, receivers: Start) -> None:
    receiver = receivers()
    registered(db, receiver)
    job_id = brought_to(db, None)

    assert deliver_due(db, SETTINGS) == 2

    got = sorted((json.loads(one["body"]) for one in receiver.got), key=lambda body: body["data"]["sequence"])
    assert [(body["type"], body["data"]["sequence"]) for body in got] == [("job.started", 1), ("job.done", 2)]
    assert all(one["verified"] for one in receiver.got)
    done = got[1]["data"]
    assert (done["job_id"], done["verdict"], done["faces"]) == (job_id, "manipulated", {"count": 1, "verdicts": ["manipulated"]})
    assert done["url"] == f"https://unmask.example/v1/jobs/{job_id}"
    assert {row.status for row in deliveries(db)} == {"delivered"}
    with db.read() as session:
        assert {one["id"] for one in receiver.got} == set(session.scalars(select(EventRow.id)))


def test_what_fails_comes_again_with_the_same_id_and_a_new_time(db: Database, receivers: Start) -> None:
    receiver = receivers()
    endpoint_id = registered(db, receiver, status=500, body="broken")
    claimed(db, accepted(db))

    deliver_due(db, SETTINGS)
    (row,) = deliveries(db)
    assert (row.status, row.attempts) == ("pending", 1)
    assert 4 * 0.99 <= seconds_until_next(db, row) <= 6
    assert endpoints.get(db, endpoint_id).failing_since is not None
    assert deliver_due(db, SETTINGS) == 0, "it is not due yet"

    receiver.answer(status=200)
    make_due(db)
    assert deliver_due(db, SETTINGS) == 1
    first, second = receiver.got
    assert first["id"] == second["id"]
    assert first["body"] == second["body"]
    assert endpoints.get(db, endpoint_id).failing_since is None
    found = log.get(db, row.id)
    assert [(one.status_code, one.error is None) for one in found.tries] == [(500, False), (200, True)]
    assert found.tries[0].response == "broken"
    assert found.row.status == "delivered"


def test_after_the_last_attempt_the_delivery_has_failed(db: Database, receivers: Start) -> None:
    registered(db, receivers(), status=500)
    claimed(db, accepted(db))
    for _ in SCHEDULE_S:
        make_due(db)
        assert deliver_due(db, SETTINGS) == 1
    assert drain(5.0)
    (row,) = deliveries(db)
    assert (row.status, row.attempts, row.next_attempt_at) == ("failed", len(SCHEDULE_S), None)
    make_due(db)
    assert deliver_due(db, SETTINGS) == 0


def test_gone_disables_at_once(db: Database, receivers: Start) -> None:
    receiver = receivers()
    endpoint_id = registered(db, receiver, status=410)
    claimed(db, accepted(db))
    deliver_due(db, SETTINGS)
    assert "410" in (endpoints.get(db, endpoint_id).disabled_reason or "")
    claimed(db, accepted(db))
    make_due(db)
    assert deliver_due(db, SETTINGS) == 0
    assert len(receiver.got) == 1


def test_five_days_of_failures_disable_with_a_reason_and_enabling_sends_what_is_pending(db: Database, receivers: Start) -> None:
    receiver = receivers()
    endpoint_id = registered(db, receiver, status=500)
    claimed(db, accepted(db))
    deliver_due(db, SETTINGS)
    with db.write() as session:
        session.execute(update(EndpointRow).values(failing_since=now() - 5 * 86_400 + 60))
    make_due(db)
    deliver_due(db, SETTINGS)
    assert endpoints.get(db, endpoint_id).disabled_at is None, "not yet"
    with db.write() as session:
        session.execute(update(EndpointRow).values(failing_since=now() - 5 * 86_400 - 1))
    make_due(db)
    deliver_due(db, SETTINGS)
    assert "five days" in (endpoints.get(db, endpoint_id).disabled_reason or "")

    receiver.answer(status=200)
    make_due(db)
    assert deliver_due(db, SETTINGS) == 0
    endpoints.enable(db, endpoint_id)
    assert deliver_due(db, SETTINGS) == 1
    assert deliveries(db)[0].status == "delivered"


@pytest.mark.parametrize(
    ("status", "headers", "least"),
    [
        (429, {}, 3.9),
        (502, {}, 3.9),
        (504, {}, 3.9),
        (503, {"Retry-After": "100"}, 98),
        (502, {"Retry-After": "30"}, 28),
        (400, {"Retry-After": formatdate(time.time() + 4000, usegmt=True)}, 3000),
        (429, {"Retry-After": "9" * 5000}, 86_000),
    ],
)
def test_a_receiver_that_is_overrun_is_left_alone_with_whatever_comes(
    db: Database, receivers: Start, clock: Clock, status: int, headers: dict[str, str], least: float
) -> None:
    """What is due already waits, and so does what happens meanwhile."""
    receiver = receivers()
    registered(db, receiver, status=status, headers=headers)
    with db.write() as session:  # a receiver that fails gets one request at a time
        session.execute(update(EndpointRow).values(failing_since=now()))
    for _ in range(3):
        claimed(db, accepted(db))
    assert deliver_due(db, SETTINGS) == 1
    claimed(db, accepted(db))

    clock.advance(least)
    assert deliver_due(db, SETTINGS) == 0

    receiver.answer(status=204)
    clock.advance(86_400.0)
    assert deliver_due(db, SETTINGS) == 4
    assert {row.status for row in deliveries(db)} == {"delivered"}
    with db.read() as session:
        assert session.scalars(select(EndpointRow.throttled_until)).all() == [None]


def test_during_a_rotation_both_secrets_verify_and_then_only_the_new_one(db: Database, receivers: Start) -> None:
    receiver = receivers()
    row, old = endpoints.register(db, SETTINGS, receiver.url)
    new = endpoints.rotate(db, SETTINGS, row.id)
    for secret in (old, new):
        receiver.answer(secret=secret)
        claimed(db, accepted(db))
        deliver_due(db, SETTINGS)
    with db.write() as session:
        session.execute(update(EndpointRow).values(previous_until=now() - 1))
    for secret in (old, new):
        receiver.answer(secret=secret)
        claimed(db, accepted(db))
        deliver_due(db, SETTINGS)
    assert [one["verified"] for one in receiver.got] == [True, True, False, True]


def test_after_another_secret_key_a_rotation_is_all_it_takes(db: Database, receivers: Start) -> None:
    """The secret that cannot be read any more does not stand in the way of the new one."""
    receiver = receivers()
    row, _ = endpoints.register(db, SETTINGS, receiver.url)
    other = SETTINGS.model_copy(update={"secret_key": SecretStr("another key, also long enough for this")})
    receiver.answer(secret=endpoints.rotate(db, other, row.id))
    claimed(db, accepted(db))
    assert deliver_due(db, other) == 1
    assert endpoints.get(db, row.id).previous_secret is None

    with db.write() as session:  # what a rotation left there before it looked
        session.execute(update(EndpointRow).values(previous_secret=seal(SETTINGS, new_secret()), previous_until=now() + 3600))
    claimed(db, accepted(db))
    assert deliver_due(db, other) == 1
    assert [(one["verified"], len(one["signature"].split())) for one in receiver.got] == [(True, 1)] * 2
    assert {row.status for row in deliveries(db)} == {"delivered"}


def test_secrets_are_not_readable_in_the_database(db: Database, receivers: Start) -> None:
    row, secret = endpoints.register(db, SETTINGS, receivers().url)
    with db.read() as session:
        stored = session.get_one(EndpointRow, row.id).secret
    assert secret.removeprefix("whsec_") not in stored
    other = SETTINGS.model_copy(update={"secret_key": SecretStr("another key, also long enough for this")})
    claimed(db, accepted(db))
    (delivery,) = deliveries(db)
    answer = deliver_one(db, other, delivery.id)
    assert answer is not None
    assert "UNMASK_SECRET_KEY" in (answer.error or "")


def test_a_dispatcher_that_dies_between_sending_and_writing_repeats_with_the_same_id(db: Database, receivers: Start) -> None:
    receiver = receivers()
    registered(db, receiver)
    claimed(db, accepted(db))

    ((lost,), _) = claim_due(db, 10)  # and here it dies
    assert claim_due(db, 10) == ([], False)
    assert deliver_due(db, SETTINGS) == 0
    expire_leases(db)
    assert deliver_due(db, SETTINGS) == 1

    assert not record(db, lost, Answer(500, "It comes back from the dead.", 1.0)), "the claim was lost"
    (row,) = deliveries(db)
    assert (row.status, row.attempts) == ("delivered", 2)


def test_a_hanging_receiver_holds_up_nobody(db: Database, receivers: Start) -> None:
    hanging, quick = receivers(), receivers()
    hanging_id = registered(db, hanging, hang=8)
    registered(db, quick)
    for _ in range(2 * PER_ENDPOINT):
        claimed(db, accepted(db))

    began = time.monotonic()
    begun = deliver_due(db, SETTINGS, patience_s=1.0)
    took = time.monotonic() - began
    while len(quick.got) < 2 * PER_ENDPOINT and time.monotonic() < began + 5:  # a machine that is busy
        begun += deliver_due(db, SETTINGS, patience_s=1.0)

    assert len(quick.got) == 2 * PER_ENDPOINT
    assert begun == 3 * PER_ENDPOINT, "of the hanging one, only so many are tried at once"
    assert took < 5
    with db.read() as session:
        flying = select(func.count()).where(DeliveryRow.endpoint_id == hanging_id, DeliveryRow.lease_until > now())
        assert session.execute(flying.select_from(DeliveryRow)).scalar_one() == PER_ENDPOINT
        longest = session.execute(select(func.max(DeliveryRow.lease_until) - now())).scalar_one()
    assert longest <= LEASE_S
    assert not drain(0.0)
    hanging.stop()
    assert drain(10.0)


def test_several_dispatchers_at_once_send_each_event_once(db: Database, receivers: Start) -> None:
    receiver = receivers()
    registered(db, receiver)
    for _ in range(25):
        claimed(db, accepted(db))
    threads = [threading.Thread(target=lambda: [deliver_due(db, SETTINGS) for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deliver_due(db, SETTINGS)
    assert drain(5.0)
    ids = [one["id"] for one in receiver.got]
    assert len(ids) == len(set(ids)) == 25


def test_an_endpoint_gets_only_the_events_it_wants(db: Database, receivers: Start) -> None:
    receiver = receivers()
    endpoints.register(db, SETTINGS, receiver.url, events=["job.done"])
    brought_to(db, None)
    deliver_due(db, SETTINGS)
    assert [json.loads(one["body"])["type"] for one in receiver.got] == ["job.done"]


def test_a_test_event_goes_to_one_receiver_at_once(db: Database, receivers: Start) -> None:
    one, other = receivers(), receivers()
    endpoint_id = registered(db, one)
    registered(db, other)
    for sequence in (1, 2):
        answer = deliver_one(db, SETTINGS, endpoints.add_test(db, endpoint_id))
        assert answer is not None
        assert answer.delivered
        body = json.loads(one.got[-1]["body"])
        assert (body["type"], body["data"]["sequence"]) == ("webhook.test", sequence)
    assert all(got["verified"] for got in one.got)
    assert other.got == []


def test_a_delivery_and_a_range_can_be_sent_again(db: Database, receivers: Start) -> None:
    receiver = receivers()
    endpoint_id = registered(db, receiver)
    for _ in range(3):
        claimed(db, accepted(db))
    deliver_due(db, SETTINGS)
    with db.write() as session:  # one lies an hour back
        session.execute(update(EventRow).where(EventRow.id == deliveries(db)[0].event_id).values(created_at=now() - 3600))
        at = session.execute(select(now())).scalar_one()

    log.redeliver(db, deliveries(db)[0].id)
    assert deliver_due(db, SETTINGS) == 1
    assert log.replay(db, endpoint_id, since=at - 60) == 2
    assert deliver_due(db, SETTINGS) == 2

    assert sorted([one["id"] for one in receiver.got][3:]) == sorted([one["id"] for one in receiver.got][:3])
    endpoints.disable(db, endpoint_id)
    with pytest.raises(EndpointError, match="disabled"):
        log.redeliver(db, deliveries(db)[0].id)


def test_removing_an_endpoint_removes_what_was_to_be_sent(db: Database, receivers: Start) -> None:
    receiver = receivers()
    endpoint_id = registered(db, receiver)
    claimed(db, accepted(db))
    ((claim,), _) = claim_due(db, 10)
    endpoints.remove(db, endpoint_id)
    assert not record(db, claim, Answer(204, None, 1.0))
    assert deliveries(db) == []
    with db.read() as session:
        assert session.execute(select(func.count()).select_from(DeliveryAttemptRow)).scalar_one() == 0


def test_settings_decide_what_may_be_registered_and_sent_to(db: Database, receivers: Start) -> None:
    receiver = receivers()
    strict = SETTINGS.model_copy(update={"webhook_allow_http": False, "webhook_allow_private": False})
    for url, why in [
        (receiver.url, "https"),
        ("https://127.0.0.1/", "not a public address"),
        ("https://localhost/", "not a public address"),
        ("https://[::1]/", "not a public address"),
        ("https://user:pass@example.com/", "user name"),
        ("https://", "absolute"),
        ("nonsense", "absolute"),
        ("file:///etc/passwd", "absolute"),
    ]:
        with pytest.raises(EndpointError, match=why):
            endpoints.register(db, strict, url)
    assert endpoints.register(db, strict, "https://example.com/hook")[1].startswith("whsec_")

    registered(db, receiver)  # allowed then, not any more
    claimed(db, accepted(db))
    delivery = next(row for row in deliveries(db) if log.get(db, row.id).url == receiver.url)
    answer = deliver_one(db, strict, delivery.id)
    assert answer is not None
    assert "UNMASK_WEBHOOK_ALLOW_HTTP" in (answer.error or "")
    assert receiver.got == []


def announce_and_fail(db: Database, job_id: str) -> None:
    with db.write() as session:
        job = session.get_one(JobRow, job_id)
        job.sequence += 1
        outbox.announce_job(session, "job.done", job)
        raise RuntimeError("power cut")


def test_a_job_that_goes_wrong_rolls_its_event_back(db: Database, receivers: Start) -> None:
    """The outbox is written in the transaction of the change: what is not committed is never sent."""
    receiver = receivers()
    registered(db, receiver)
    claim = claimed(db, brought_to(db, Stage.RENDER), Stage.RENDER)
    deliver_due(db, SETTINGS)
    before = len(receiver.got)
    with pytest.raises(RuntimeError, match="power cut"):
        announce_and_fail(db, claim.job_id)
    assert deliver_due(db, SETTINGS) == 0
    assert advance(db, claim)
    assert deliver_due(db, SETTINGS) == 1
    assert len(receiver.got) == before + 1


def test_without_a_secret_key_no_secret_is_made(db: Database) -> None:
    with pytest.raises(SecretError, match="UNMASK_SECRET_KEY"):
        endpoints.register(db, Settings(), "https://example.com")
    assert len(new_secret().removeprefix("whsec_")) == 44
