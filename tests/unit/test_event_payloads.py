"""The schemas of events: one for every type, as JSON Schema has it."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from pipeline import outbox, payloads

DESIGNED = {
    "job.started",
    "job.done",
    "job.failed",
    "job.refused",
    "training.done",
    "training.failed",
    "model.promoted",
    "model.rolled_back",
}
"""The contract: these there are, whatever else there may be."""


def test_the_designed_types_are_there_and_every_type_has_a_model_of_its_data() -> None:
    assert set(outbox.TYPES) >= DESIGNED
    assert set(payloads.DATA) == {*outbox.TYPES, payloads.TEST_EVENT}


@pytest.mark.parametrize("type", payloads.DATA)
def test_a_schema_is_valid_and_describes_the_whole_event(type: str) -> None:
    schema = payloads.schema(type)
    Draft202012Validator.check_schema(schema)
    assert schema["title"] == type
    assert schema["properties"]["type"]["const"] == type
    assert set(schema["required"]) == {"type", "timestamp", "data"}
    assert schema["description"].endswith(".")
    assert json.loads(json.dumps(schema)) == schema


def test_a_schema_takes_new_fields_and_refuses_wrong_ones() -> None:
    validator = Draft202012Validator(payloads.schema("webhook.test"))
    data = {"endpoint_id": "ep_1", "message": "This is a test.", "sequence": 1}
    event = {"type": "webhook.test", "timestamp": "2026-01-01T00:00:00.000Z", "data": data}
    assert validator.is_valid(event)
    assert validator.is_valid({**event, "data": {**data, "new": 1}})
    assert not validator.is_valid({**event, "type": "job.done"})
    assert not validator.is_valid({**event, "data": {**data, "sequence": 0}})
    assert not validator.is_valid({**event, "data": {"sequence": 1}})
