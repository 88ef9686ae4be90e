"""What goes over the wire, as Pydantic models: they validate requests and make the OpenAPI description."""

from __future__ import annotations

from typing import Any, Literal

from flask_openapi3.models.file import FileStorage
from pydantic import BaseModel, ConfigDict, Field

from pipeline.jobs import Queue, Reason, Stage, Status, Verdict
from webhooks.pictures import Side


class Strict(BaseModel):
    """A request: fields that it does not have are refused, not ignored."""

    model_config = ConfigDict(extra="forbid")


class JobPath(BaseModel):
    id: str = Field(description="The job's id", max_length=64)


class FacePath(JobPath):
    index: int = Field(description="The face's index, from 0", ge=0, lt=2**31)


class EndpointPath(BaseModel):
    id: str = Field(description="The endpoint's id", max_length=64)


class DeliveryPath(BaseModel):
    id: str = Field(description="The delivery's id", max_length=64)


class EventPath(BaseModel):
    type: str = Field(description="Such as `job.done`", max_length=64)


class ModelPath(BaseModel):
    name: str = Field(max_length=255)
    version: str = Field(max_length=64)


class QueuePath(BaseModel):
    name: str = Field(description="`interactive`, `bulk`, `backfill`, or one stage's: `extract`, `interactive.extract`", max_length=64)


class FileForm(BaseModel):
    file: FileStorage = Field(description="The image: JPEG, PNG, WebP, AVIF, BMP, GIF or TIFF")
    inbox: str | None = Field(None, description="The inbox it goes into; left out: that of the settings, or your only one", max_length=64)


class KeyBody(Strict):
    key: str = Field(description="Key of an object that lies in the inbox's bucket", min_length=1, max_length=1024)
    inbox: str | None = Field(None, description="Name of the inbox; null: that of the settings, or your only one", max_length=64)


class JobsQuery(Strict):
    status: Status | None = None
    verdict: Verdict | None = None
    prefix: str | None = Field(None, description="Beginning of the object key", max_length=1024)
    origin: str | None = Field(None, description="`seaweedfs`, `minio`, `sqs`, `sweep`, `submit` or `predict`", max_length=32)
    after: str | None = Field(None, description="`next` of the page before", max_length=500)
    limit: int = Field(50, ge=1, le=500)


class PictureQuery(Strict):
    side: Side = Field(320, description="The longer side in pixels, at most")


class DeliveriesQuery(Strict):
    endpoint_id: str | None = Field(None, max_length=64)
    job_id: str | None = Field(None, max_length=64)
    status: Literal["pending", "delivered", "failed"] | None = None
    event_type: str | None = Field(None, description="Such as `job.done`", max_length=64)
    after: str | None = Field(None, description="`next` of the page before", max_length=64)
    limit: int = Field(50, ge=1, le=200)


class EndpointBody(Strict):
    url: str = Field(description="Where to send: https, and not inside a private network unless settings allow it", max_length=2000)
    description: str = Field("", max_length=500)
    events: list[str] = Field([], description="Types it wants, such as `job.done`; empty: all", max_length=50)
    inbox: str | None = Field(None, description="Only events of this inbox; null: of all, and those of none", max_length=64)


class EndpointChange(Strict):
    description: str | None = Field(None, description="null: as it was", max_length=500)
    events: list[str] | None = Field(None, description="Types it wants from now on; empty: all; null: as before", max_length=50)


class ReplayBody(Strict):
    since: float = Field(description="Seconds since the epoch; events of then and later", ge=0, le=1e11)
    until: float | None = Field(None, description="Seconds since the epoch; events of then and earlier", ge=0, le=1e11)
    undelivered: bool = Field(False, description="Only those that it has not taken yet")


class Source(BaseModel):
    bucket: str
    key: str
    version_id: str
    etag: str
    size: int = Field(description="Bytes")
    sha256: str | None
    width: int | None
    height: int | None


class Face(BaseModel):
    index: int
    box: list[int] = Field(description="Left, top, width, height in pixels of the upright image", min_length=4, max_length=4)
    detection: float = Field(description="The detector's score, 0 to 1")
    quality: dict[str, float | None] = Field(
        description="`size`: shorter side of the box in pixels; `blur`: variance of the Laplacian, small is blurred; "
        "`blocks`: how plainly the blocks of JPEG show, large is ruined, null where the face is older than this figure"
    )
    score: float | None = Field(description="Calibrated probability of manipulation, 0 to 1")
    verdict: Verdict | None
    reason: Reason | None
    evidence: dict[str, Any] | None


class Model(BaseModel):
    name: str
    version: str
    sha256: str
    limits: list[str] = Field(description="What its scores do not say")


class Job(BaseModel):
    id: str
    status: Status
    stage: Stage
    queue: Queue
    origin: str
    attempts: int
    source: Source
    verdict: Verdict | None
    score: float | None = Field(description="Highest score of any face, 0 to 1")
    reason: str | None = Field(description="Why there is no verdict, or the sentence of a refused or failed job")
    timings_ms: dict[str, float]
    created_at: str
    started_at: str | None
    finished_at: str | None
    model: Model | None
    faces: list[Face] | None = Field(None, description="In the answer to one job only")
    url: str
    annotated: str | None = Field(description="URL of the annotated PNG")
    result: str | None = Field(description="URL of result.json")


class Jobs(BaseModel):
    jobs: list[Job]
    next: str | None = Field(description="Pass as `after` for the next page; null: there is none")


class Prediction(BaseModel):
    job_id: str
    verdict: Verdict
    score: float | None = Field(description="Highest score of any face, 0 to 1")
    reason: str | None
    faces: list[Face]
    model: Model | None
    limits: list[str] = Field(description="What the scores do not say")
    annotated_png: str = Field(description="The image with a mesh over the manipulated faces, base64")
    timings_ms: dict[str, float]
    url: str


class Endpoint(BaseModel):
    id: str
    url: str
    description: str
    events: list[str] = Field(description="Types it wants; empty: all")
    inbox: str | None = Field(description="Only events of this inbox; null: of all, and those of none")
    created_at: str
    failing_since: str | None = Field(description="Since then nothing but failures")
    throttled_until: str | None = Field(description="The receiver asked to be left alone until then")
    disabled_at: str | None
    disabled_reason: str | None


class NewEndpoint(Endpoint):
    secret: str = Field(description="Signs its requests; shown this once")


class Secret(BaseModel):
    secret: str = Field(description="The new secret; shown this once. The old one signs, too, for 24 hours")


class Endpoints(BaseModel):
    endpoints: list[Endpoint]


class Attempt(BaseModel):
    at: str
    status_code: int | None
    error: str | None
    duration_ms: float
    request_headers: dict[str, str] | None = Field(description="null: no connection was made, so nothing was sent")
    response_headers: dict[str, str] | None = Field(description="The first of them, long ones cut; null: nothing came back")
    response: str | None = Field(description="The beginning of the receiver's answer")


class Delivery(BaseModel):
    id: str
    event_id: str
    event_type: str
    endpoint_id: str
    endpoint_url: str
    status: Literal["pending", "delivered", "failed"]
    created_at: str
    next_attempt_at: str | None
    delivered_at: str | None
    attempts: list[Attempt]
    event: dict[str, Any] | None = Field(None, description="The event as it is sent; in the answer to one delivery only")


class Deliveries(BaseModel):
    deliveries: list[Delivery]
    next: str | None


class Replayed(BaseModel):
    deliveries: int = Field(description="How many are sent again")


class ModelVersion(BaseModel):
    name: str
    version: str
    aliases: list[str]
    published_at: str
    card: dict[str, Any]


class Models(BaseModel):
    models: list[ModelVersion]


class ModelChoice(BaseModel):
    name: str
    version: str


class QueueState(BaseModel):
    name: str
    paused: bool


class Queues(BaseModel):
    paused: list[str]
    backlog: dict[str, int] = Field(description="Queued jobs by the queue they wait in")
