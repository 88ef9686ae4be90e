"""Events are written with the change they tell of or not at all, one delivery for each endpoint that wants them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from pipeline import inquiry, ledger, outbox
from pipeline.database import Database, DeliveryRow, EndpointRow, EventRow, now
from pipeline.jobs import Judgement, Reason, Stage, Verdict
from tests.fixtures.jobs import MODEL, accepted, advance, brought_to, claimed, events, face, upload


def endpoint(db: Database, name: str, **fields: Any) -> str:
    with db.write() as session:
        session.add(EndpointRow(id=name, url=f"https://{name}.example/hook", secret="sealed", created_at=now(), **fields))
    return name


def deliveries(db: Database) -> list[tuple[str, str]]:
    """(event type, endpoint) of each delivery, in order."""
    with db.read() as session:
        query = select(EventRow.type, DeliveryRow.endpoint_id).join(DeliveryRow, DeliveryRow.event_id == EventRow.id)
        return sorted((type, endpoint) for type, endpoint in session.execute(query))


def test_a_finished_job_tells_each_endpoint_what_it_asked_for(db: Database) -> None:
    endpoint(db, "all")
    endpoint(db, "ends", events=["job.done", "job.failed"])
    endpoint(db, "training", events=["training.done"])
    endpoint(db, "disabled", disabled_at=1.0)

    brought_to(db, None)

    assert deliveries(db) == [("job.done", "all"), ("job.done", "ends"), ("job.started", "all")]
    with db.read() as session:
        rows = session.scalars(select(DeliveryRow)).all()
        assert {(row.status, row.attempts, row.lease_until, row.delivered_at) for row in rows} == {("pending", 0, None, None)}
        at = session.execute(select(now())).scalar_one()
        assert all(row.next_attempt_at is not None and row.next_attempt_at <= at for row in rows)


def test_the_payload_says_what_a_receiver_needs(db: Database) -> None:
    job_id = ledger.accept(db, upload("Grüße/a b.jpg", etag="e1", version_id="v1", sequencer="01")).job_id
    assert advance(db, claimed(db, job_id), [face(0), face(1, Reason.BLURRED), face(2)])
    judgements = [Judgement(0, 0.02, Verdict.AUTHENTIC), Judgement(2, 0.97, Verdict.MANIPULATED)]
    assert ledger.classified(db, claimed(db, job_id, Stage.CLASSIFY), judgements, MODEL, 5.0)
    assert advance(db, claimed(db, job_id, Stage.RENDER))

    started, done = (event.payload for event in events(db, job_id))

    assert done["type"] == "job.done"
    assert done["data"] == {
        "job_id": job_id,
        "source": {"bucket": "inbox", "key": "Grüße/a b.jpg", "version_id": "v1", "etag": "e1"},
        "status": "done",
        "verdict": "manipulated",
        "score": 0.97,
        "reason": None,
        "faces": {"count": 3, "verdicts": ["authentic", "not_applicable", "manipulated"]},
        "model_version": "1",
        "sequence": 2,
        "url": f"/v1/jobs/{job_id}",
    }
    assert started["data"] | {"status": "running", "verdict": None, "score": None, "sequence": 1} == started["data"]
    assert started["data"]["faces"] == {"count": 0, "verdicts": []}


def test_events_are_stamped_by_the_databases_clock(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = accepted(db)
    monkeypatch.setattr("time.time", lambda: 0.0)
    claimed(db, job_id)

    (started,) = events(db, job_id)
    job = inquiry.job(db, job_id)

    assert job is not None
    assert started.id.startswith("msg_")
    assert started.payload["timestamp"].endswith("Z")
    told = datetime.fromisoformat(started.payload["timestamp"]).timestamp()
    assert abs(told - started.created_at) <= 0.001
    assert started.created_at >= job.created_at > 1e9


def test_a_payload_stays_under_20_kB(db: Database) -> None:
    job_id = ledger.accept(db, upload("ü" * 1024)).job_id
    assert advance(db, claimed(db, job_id), [face(index, Reason.FACE_TOO_SMALL) for index in range(1000)])
    assert ledger.retry(db, claimed(db, job_id, Stage.RENDER), OSError(), max_attempts=3, permanent=True, sentence="ü" * 50_000)

    failed = events(db, job_id)[-1].payload

    assert failed["type"] == "job.failed"
    assert failed["data"]["faces"]["count"] == 1000
    assert len(json.dumps(failed)) < 20_000


def test_nothing_remains_of_an_event_whose_transaction_fails(db: Database) -> None:
    endpoint(db, "all")

    def promote_and_fail() -> None:
        with db.write() as session:
            outbox.announce(session, "model.promoted", "unmask-resnet50", 1, {})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        promote_and_fail()

    assert deliveries(db) == []
    with db.read() as session:
        assert session.scalars(select(EventRow)).all() == []


def test_one_sequence_number_is_one_event(db: Database) -> None:
    with db.write() as session:
        assert outbox.next_sequence(session, "unmask-resnet50") == 1
        outbox.announce(session, "model.promoted", "unmask-resnet50", 1, {"version": "2"})
        assert outbox.next_sequence(session, "unmask-resnet50") == 2
        assert outbox.next_sequence(session, "another") == 1

    with pytest.raises(IntegrityError), db.write() as session:
        outbox.announce(session, "model.rolled_back", "unmask-resnet50", 1, {"version": "1"})


def test_an_endpoint_registered_later_hears_only_what_happens_later(db: Database) -> None:
    job_id = accepted(db)
    claim = claimed(db, job_id)
    endpoint(db, "late")

    assert ledger.refuse(db, claim, "This is no image.")

    assert deliveries(db) == [("job.refused", "late")]
