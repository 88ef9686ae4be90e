"""What each type of webhook event says, as models: the JSON Schemas that receivers are given are made of these.

An event is `{type, timestamp, data}` (Standard Webhooks). Receivers have to bear fields that they do not know: new ones
may come at any time. Fields that are here stay, and keep their meaning.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from pipeline.jobs import Verdict

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TEST_EVENT = "webhook.test"
"""Sent to one endpoint when somebody asks for it; nobody subscribes to it."""


class Data(BaseModel):
    """What every event's data has."""

    model_config = ConfigDict(extra="allow")

    sequence: int = Field(ge=1, description="Grows by one with each event about the same thing: of two, the higher is the newer")


class Source(BaseModel):
    """The object that was judged."""

    model_config = ConfigDict(extra="allow")

    bucket: str
    key: str
    version_id: str = Field(description="Empty: not known, or the bucket is not versioned")
    etag: str


class Faces(BaseModel):
    """How many faces there are, and what was said of each, by index."""

    model_config = ConfigDict(extra="allow")

    count: int = Field(ge=0)
    verdicts: list[Verdict | None] = Field(description="Of the first 200")


class JobData(Data):
    """About one job."""

    job_id: str
    source: Source
    status: str
    verdict: Verdict | None = Field(description="The worst of its faces'; null: none yet, or none at all")
    score: float | None = Field(ge=0, le=1, description="Highest calibrated probability of manipulation of any face")
    reason: str | None = Field(description="Why there is no verdict, or the sentence of a refused or failed job")
    faces: Faces
    model_version: str | None
    url: str = Field(description="Where to ask for the job")


class JobStarted(JobData):
    """A worker has taken the job for the first time."""

    status: Literal["running"]


class JobDone(JobData):
    """The job has its result."""

    status: Literal["done"]


class JobFailed(JobData):
    """The job's attempts are used up; it can be sent through again."""

    status: Literal["failed"]


class JobRefused(JobData):
    """The input can never work, or was gone before it was read; `reason` says why."""

    status: Literal["refused", "source_gone"]


class ModelVersion(BaseModel):
    """A published model version."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: str


class ModelChanged(Data):
    """Another model version judges from now on."""

    alias: str = Field(description="`champion`: it judges")
    name: str
    version: str
    previous: ModelVersion | None = Field(description="Which one judged before; null: none did")
    url: str


class CandidateDecided(Data):
    """A candidate did not take over: it waits for a person, or is worse than the champion."""

    decision_id: str
    name: str
    version: str
    training_id: str = Field(description="The training that made it; empty: none of ours")
    reasons: list[str] = Field(description="A sentence for each thing that did not hold")
    url: str


class DriftedMeasure(BaseModel):
    """How one measure of a day lies beside the hold-out's."""

    model_config = ConfigDict(extra="allow")

    measure: Literal["score", "size", "blur", "detection"]
    psi: float = Field(ge=0, description="Population stability index, .25 and more is much")
    ks: float = Field(ge=0, le=1, description="Largest distance of the two distributions")
    p: float = Field(ge=0, le=1, description="Of that distance, by chance alone")


class DriftAlarm(Data):
    """What came in on a day is distributed otherwise than the faces the model was measured on."""

    day: str = Field(description="`2026-11-26`, UTC")
    name: str = Field(description="The model that judged")
    version: str
    faces: int = Field(ge=0)
    measures: list[DriftedMeasure]
    url: str


class TrainingEnded(Data):
    """About one training."""

    training_id: str
    status: str
    dataset: str = Field(description="What it learnt from; `default`: the data set that grows by labels")
    device: Literal["cpu", "gpu", "hpu"]
    schedule: str | None = Field(description="The schedule that asked for it; null: a person")
    model: ModelVersion | None = Field(description="The version that was made of it")
    outcome: str | None = Field(description="What the gate said of that: promoted, waiting or refused")
    reason: str | None = Field(description="Why it failed, one sentence")
    url: str = Field(description="Where to ask for the training")


class TrainingDone(TrainingEnded):
    """A training is over, and the gate has decided about the version that came of it."""

    status: Literal["done"]
    model: ModelVersion


class TrainingFailed(TrainingEnded):
    """A training cannot go on, or did not get on for too many attempts."""

    status: Literal["failed"]


class EndpointDisabled(Data):
    """Nothing more is sent to a webhook endpoint, because it failed for five days or answered that it is gone."""

    endpoint_id: str
    host: str = Field(description="Of its URL, which may hold secrets and is not told")
    reason: str = Field(description="One sentence")
    failing_since: str | None = Field(description="RFC 3339")
    pending: int = Field(ge=0, description="Deliveries that wait until it is enabled again")
    url: str = Field(description="Where to look at it")


class WebhookTest(Data):
    """Somebody wanted to see whether webhooks arrive."""

    endpoint_id: str
    message: str


DATA: dict[str, type[Data]] = {
    "job.started": JobStarted,
    "job.done": JobDone,
    "job.failed": JobFailed,
    "job.refused": JobRefused,
    "model.promoted": ModelChanged,
    "model.rolled_back": ModelChanged,
    "model.waiting": CandidateDecided,
    "model.refused": CandidateDecided,
    "drift.alarm": DriftAlarm,
    "training.done": TrainingDone,
    "training.failed": TrainingFailed,
    "endpoint.disabled": EndpointDisabled,
    TEST_EVENT: WebhookTest,
}
"""The data of each type of event. A test holds that every type has its own, and that what is really sent is as it says."""


def schema(type: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a whole event of that type. Raises KeyError for a type there is not."""
    data = DATA[type]
    fields: dict[str, Any] = {
        "type": (Literal[type], ...),
        "timestamp": (str, Field(description="When it happened, RFC 3339", json_schema_extra={"format": "date-time"})),
        "data": (data, ...),
    }
    found = create_model(type, __config__=ConfigDict(extra="allow"), **fields).model_json_schema()
    return {"$schema": DIALECT, **found, "title": type, "description": " ".join((data.__doc__ or "").split())}


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of each type of event."""
    return {type: schema(type) for type in DATA}
