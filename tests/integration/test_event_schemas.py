"""Every type of event, emitted by the code that emits it, sent to a receiver, and held against its published schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, SecretStr
from sqlalchemy import func, select

from pipeline import drift, gate, ledger, outbox, payloads, registry, trainings
from pipeline.database import Database, DeliveryRow, now
from pipeline.drift import Compared
from pipeline.gate import Check, Outcome
from pipeline.jobs import Reason, Stage
from pipeline.settings import Settings
from pipeline.tables.learning import ReferenceRow
from tests.fixtures import trainings as classes
from tests.fixtures.jobs import accepted, advance, brought_to, claimed, face
from tests.fixtures.models import write_model
from tests.fixtures.stores import wait_until
from tests.fixtures.web import Receiver
from tests.unit.test_registry import MemoryStorage
from webhooks import endpoints
from webhooks.outbound import deliver_due, deliver_one, drain

SETTINGS = Settings(secret_key=SecretStr("a secret key of the tests, long enough"), webhook_allow_http=True, webhook_allow_private=True)


def jobs(db: Database) -> None:
    """Done with a face, without any, refused, gone, failed at once and after the last attempt."""
    brought_to(db, None)
    nobody = accepted(db)
    assert advance(db, claimed(db, nobody), [face(0, Reason.BLURRED)])
    assert advance(db, claimed(db, nobody, Stage.RENDER))
    assert ledger.refuse(db, claimed(db, accepted(db)), "This is no picture.")
    assert ledger.source_gone(db, claimed(db, accepted(db)), "It was deleted.")
    ledger.retry(db, claimed(db, accepted(db)), OSError(), max_attempts=3, permanent=True, sentence="It is broken.")


def models(db: Database, folder: Path) -> None:
    """A first champion, a second, back to the first; a candidate that waits, and one that is refused."""
    store, settings = MemoryStorage(), SETTINGS.model_copy(update={"data_dir": folder, "shadow_s": 0.0})
    cards = [registry.publish(db, store, settings, write_model(folder / version, version=version)) for version in "1234"]
    for version in ("1", "2"):
        registry.promote(db, settings, "green", version)
    registry.rollback(db, settings)
    checks = [Check("auc", False, "The AUC is lower by .1."), Check("ece", True, "The calibration error is .02.")]
    for card, outcome in zip(cards[2:], (Outcome.WAITING, Outcome.REFUSED), strict=True):
        gate._recorded(db, store, settings, card, ("green", "1"), checks, outcome, training_id="trn_1")
    with db.write() as session:
        reference = ReferenceRow(name="green", version="1", dataset="d", samples={}, created_at=now())
        session.add(reference)
    far = Compared(n=500, reference_n=500, psi=0.7, psi_limit=0.25, ks=0.4, p=1e-9, alarm=True)
    assert drift._record(db, "2026-11-26", reference, {"score": far, "blur": far})


def schooling(db: Database) -> None:
    """A training that ends well, and one that does not."""
    kept: dict[str, Any] = {"prefix": "trainings/x/1/", "files": {"checkpoint.npz": "0" * 64}, "stage": 0, "step": 5}
    well = classes.claimed(db, classes.asked(db))
    for phase in ("release", "gate"):
        assert trainings.got_on(db, well, kept, phase=phase)
    assert trainings.finish(db, well, name="green", version="2", decision={"outcome": "waiting", "checks": []})
    ill = classes.claimed(db, classes.asked(db))
    trainings.retry(db, ill, "It broke.", permanent=True, max_attempts=3, first_wait_s=5.0, error="trace")


def disablement(db: Database, gone: Receiver) -> None:
    row, _ = endpoints.register(db, SETTINGS, gone.url)
    gone.answer(status=410)
    deliver_one(db, SETTINGS, endpoints.add_test(db, row.id))


def undescribed(model: type[BaseModel], data: Any, where: str) -> list[str]:
    """Paths of fields that are sent and not described, or described and not sent."""
    found = [f"{where}.{name}" for name in set(data) ^ set(model.model_fields)]
    for name, field in model.model_fields.items():
        inner = [one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type) and issubclass(one, BaseModel)]
        value = data.get(name)
        for one in value if isinstance(value, list) else [value]:
            if inner and isinstance(one, dict):
                found += undescribed(inner[0], one, f"{where}.{name}")
    return found


def _pending(db: Database, endpoint_id: str) -> int:
    """How many deliveries wait: on a busy machine an attempt may fail, and comes again after 5 s."""
    query = select(func.count()).where(DeliveryRow.endpoint_id == endpoint_id, DeliveryRow.status == "pending")
    with db.read() as session:
        return int(session.execute(query.select_from(DeliveryRow)).scalar_one())


@pytest.mark.parametrize("db_url", ["sqlite"], indirect=True)
def test_what_is_sent_is_as_its_schema_says(db: Database, receivers: Callable[..., Receiver], tmp_path: Path) -> None:
    receiver = receivers()
    row, secret = endpoints.register(db, SETTINGS, receiver.url)
    receiver.answer(secret=secret)
    jobs(db)
    models(db, tmp_path)
    schooling(db)
    disablement(db, receivers())
    endpoints.add_test(db, row.id)
    wait_until(lambda: deliver_due(db, SETTINGS, patience_s=20.0) == 0 and not _pending(db, row.id), "the last delivery", seconds=60)
    assert drain(5.0)

    assert all(one["verified"] for one in receiver.got)
    events = [json.loads(one["body"]) for one in receiver.got]
    assert {event["type"] for event in events} == {*outbox.TYPES, payloads.TEST_EVENT}, "a type that nothing here emits is not proven"
    for event in events:
        validator = Draft202012Validator(payloads.schema(event["type"]), format_checker=Draft202012Validator.FORMAT_CHECKER)
        assert [error.message for error in validator.iter_errors(event)] == [], event
        assert undescribed(payloads.DATA[event["type"]], event["data"], event["type"]) == []
        assert len(json.dumps(event)) < 20_000
        if event["type"] != payloads.TEST_EVENT:
            assert event["data"]["url"].startswith(SETTINGS.url + "/v1/")
