"""Trainings and schedules as the API takes and shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from pipeline import schedules
from pipeline.options import Options
from pipeline.tables.training import ScheduleRow, TrainingHistoryRow, TrainingRow
from webhooks.api.shapes import moment

Device = Literal["cpu", "gpu", "hpu"]
TrainingStatus = Literal["queued", "running", "done", "failed", "cancelled"]
DATASET = "A folder with faces.csv, one with real/ and fake/, a .csv or .jsonl manifest, or one of these as s3://…; empty: the growing one"
CRON = "Minute, hour, day, month, weekday"
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class TrainingPath(BaseModel):
    """Which training."""

    id: str = Field(max_length=64)


class TrainingQuery(BaseModel):
    """Which trainings."""

    status: TrainingStatus | None = None
    schedule: str | None = Field(None, max_length=64)
    after: str | None = Field(None, max_length=64, description="`next` of the page before")
    limit: int = Field(50, ge=1, le=1000)


class TrainingBody(BaseModel):
    """A training to be asked for."""

    dataset: str = Field("", max_length=2000, description=DATASET)
    device: Device | None = Field(None, description="Left out: UNMASK_TRAIN_DEVICE")
    params: Options = Field(default_factory=Options, description="Options of the trainer")  # type: ignore[arg-type]


class Happened(BaseModel):
    """Something that happened to a training."""

    at: str
    what: str
    worker: str
    detail: str


class Training(BaseModel):
    """A training."""

    id: str
    status: TrainingStatus
    phase: Literal["train", "release", "gate"] = Field(description="What it is, or was last, at")
    dataset: str
    device: Device
    cards: str = Field(description="The group of cards that it runs or last ran on")
    params: dict[str, Any]
    schedule: str | None
    slot: str | None = Field(description="The due time that it was made for")
    requested_by: str
    attempts: int = Field(description="Since it last got on")
    runs: int = Field(description="How often a worker has taken it in all")
    worker: str
    next_attempt_at: str | None
    progress: dict[str, Any] = Field(description="What the trainer said last: epoch, step, steps, loss, auc, images_per_s, eta_s, …")
    checkpoint: dict[str, Any] | None = Field(description="The last that is stored: `stage`, `step`, `at`")
    model: dict[str, str] | None = Field(description="The version that came of it")
    decision: dict[str, Any] | None = Field(description="What the gate said of that")
    reason: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    curve: list[dict[str, Any]] | None = Field(None, description="Of one training: what the trainer told, by step")
    history: list[Happened] | None = Field(None, description="Of one training")
    url: str


class Trainings(BaseModel):
    """A page of trainings."""

    trainings: list[Training]
    next: str | None = Field(description="Goes into `after`; null: there are no more")


class SchedulePath(BaseModel):
    """Which schedule."""

    name: str = Field(max_length=64)


class ScheduleEdit(BaseModel):
    """What a schedule is to be from now on; what is left out stays."""

    cron: str | None = Field(None, max_length=255, description=CRON)
    timezone: str | None = Field(None, max_length=64, description="IANA name, such as Europe/Berlin")
    dataset: str | None = Field(None, max_length=2000, description=DATASET)
    device: Device | None = None
    params: Options | None = None
    missed: Literal["latest", "skip"] | None = Field(None, description="Of slots that nobody was up for, the last is run late, or none")
    on_drift: bool | None = Field(None, description="Also when drift is found")
    enabled: bool | None = None

    def changes(self) -> dict[str, Any]:
        """What was said."""
        said = self.model_dump(exclude_none=True)
        if self.params is not None:
            said["params"] = self.params.model_dump(exclude_none=True)
        return said


class ScheduleBody(ScheduleEdit):
    """A schedule to be made."""

    name: str = Field(pattern=NAME)
    cron: str = Field(max_length=255, description=CRON, examples=["0 3 * * 0"])


class Schedule(BaseModel):
    """A schedule."""

    name: str
    cron: str
    words: str = Field(description="The cron expression in words")
    timezone: str
    dataset: str
    device: Device
    params: dict[str, Any]
    missed: Literal["latest", "skip"]
    on_drift: bool
    enabled: bool
    next_at: str | None
    last_slot: str | None
    created_by: str
    created_at: str


class Schedules(BaseModel):
    """All schedules."""

    schedules: list[Schedule]


def training(
    row: TrainingRow, url: str, *, curve: list[dict[str, Any]] | None = None, history: list[TrainingHistoryRow] | None = None
) -> Training:
    """A row as the API shows it. `url`: of the server."""
    plain = ("id", "status", "phase", "device", "cards", "params", "schedule", "requested_by", "attempts", "runs", "worker", "reason")
    kept = row.checkpoint and {name: row.checkpoint[name] for name in ("stage", "step") if name in row.checkpoint}
    if kept is not None and row.checkpoint is not None:
        kept["at"] = moment(row.checkpoint.get("at"))
    return Training(
        **{name: getattr(row, name) for name in plain},
        dataset=row.dataset or "default",
        slot=moment(row.slot),
        next_attempt_at=moment(row.next_attempt_at),
        progress={name: value for name, value in row.progress.items() if name not in ("kept_s", "event")},
        checkpoint=kept,
        model=None if row.result_version is None else {"name": row.result_name or "", "version": row.result_version},
        decision=row.decision,
        created_at=moment(row.created_at),
        started_at=moment(row.started_at),
        finished_at=moment(row.finished_at),
        curve=curve,
        history=None if history is None else [Happened(at=moment(h.at), what=h.what, worker=h.worker, detail=h.detail) for h in history],
        url=f"{url}/v1/trainings/{row.id}",
    )


def schedule(row: ScheduleRow) -> Schedule:
    """A row as the API shows it."""
    plain = ("name", "cron", "timezone", "device", "params", "missed", "on_drift", "enabled", "created_by")
    return Schedule(
        **{name: getattr(row, name) for name in plain},
        words=schedules.words(row.cron),
        dataset=row.dataset or "default",
        next_at=moment(row.next_at),
        last_slot=moment(row.last_slot),
        created_at=moment(row.created_at),
    )
