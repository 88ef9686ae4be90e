"""The gate's decisions, the shadow, and drift."""

from __future__ import annotations

from typing import Any

from flask import Response
from pydantic import BaseModel, Field

from pipeline import drift, gate, reference, shadow
from webhooks import choosing
from webhooks.access import principal
from webhooks.api.blueprints import answer, picture, resource
from webhooks.api.schemas import ModelChoice, ModelPath
from webhooks.api.shapes import moment
from webhooks.context import here

blueprint = resource("learning", "Whether a candidate is better, how it does in the shadow, and whether the traffic has drifted")
PNG: dict[str, Any] = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}


class DecisionPath(BaseModel):
    id: str = Field(max_length=64)


class CheckOut(BaseModel):
    name: str
    passed: bool
    sentence: str


class DecisionOut(BaseModel):
    id: str
    name: str
    version: str
    champion: str | None
    training_id: str
    outcome: str = Field(description="`promoted`, `waiting` (for a person) or `refused`")
    checks: list[CheckOut]
    picture: str | None
    dataset: str
    created_at: str
    settled_by: str | None


class Decisions(BaseModel):
    decisions: list[DecisionOut]


class ShadowBody(BaseModel):
    hours: float | None = Field(None, gt=0, le=24 * 90)
    share: float | None = Field(None, gt=0, le=1, description="Of the jobs")


class ShadowOut(BaseModel):
    name: str
    version: str
    started_at: str
    until: str
    running: bool
    faces: int
    jobs: int
    mean_difference: float | None = Field(description="Its score minus the champion's")
    mean_distance: float | None
    correlation: float | None
    other_verdicts: int


class Shadows(BaseModel):
    shadows: list[ShadowOut]


class DriftMeasure(BaseModel):
    measure: str
    n: int
    reference_n: int
    psi: float
    psi_limit: float
    ks: float
    p: float
    alarm: bool


class DriftDay(BaseModel):
    day: str
    name: str
    version: str
    measures: list[DriftMeasure]


class Drift(BaseModel):
    days: list[DriftDay]
    lacking: str | None = Field(None, description="Why days are not compared, in a sentence; null: nothing is lacking")


@blueprint.get("/decisions", responses={200: Decisions})
def decisions() -> Response:
    """What the gate decided about candidates, newest first, and why"""
    found = []
    for row in gate.decisions(here().database):
        plain = {name: getattr(row, name) for name in ("id", "name", "version", "training_id", "outcome", "dataset", "settled_by")}
        shown = f"/v1/decisions/{row.id}.png" if row.picture else None
        checks = [CheckOut(**check) for check in row.checks]
        found.append(DecisionOut(**plain, champion=row.champion_version, checks=checks, picture=shown, created_at=moment(row.created_at)))
    return answer(Decisions(decisions=found))


@blueprint.get("/decisions/<string:id>.png", responses={200: PNG})
def decision_picture(path: DecisionPath) -> Response:
    """The picture of a decision: differences with intervals, ROC curves, false positives by group"""
    return picture(choosing.decision_picture(here(), path.id), "image/png")


@blueprint.post("/models/<string:name>/<string:version>/approve", responses={200: ModelChoice})
def approve(path: ModelPath) -> Response:
    """Make a candidate that waits for a person the champion"""
    gate.approve(here().database, here().settings, path.name, path.version, actor=principal().actor)
    return answer(ModelChoice(name=path.name, version=path.version))


@blueprint.post("/models/<string:name>/<string:version>/shadow", responses={200: ModelChoice})
def begin_shadow(path: ModelPath, body: ShadowBody) -> Response:
    """Have a version score live traffic unseen for a while"""
    choosing.begin_shadow(here(), path.name, path.version, hours=body.hours, share=body.share)
    return answer(ModelChoice(name=path.name, version=path.version))


@blueprint.delete("/models/<string:name>/<string:version>/shadow", responses={200: ModelChoice})
def end_shadow(path: ModelPath) -> Response:
    """Take a version out of the shadow"""
    choosing.published(here(), path.name, path.version)
    shadow.end(here().database, path.name, path.version, actor=principal().actor)
    return answer(ModelChoice(name=path.name, version=path.version))


@blueprint.get("/shadows", responses={200: Shadows})
def shadows() -> Response:
    """What was in the shadow, newest first, and how its scores differ from the champion's"""
    found = []
    for row, compared in choosing.shadows(here()):
        figures: dict[str, Any] = {"faces": 0, "jobs": 0, "other_verdicts": 0}
        figures |= dict.fromkeys(("mean_difference", "mean_distance", "correlation"))
        if compared is not None:
            figures = {"faces": compared.faces, "jobs": compared.jobs, "other_verdicts": compared.changed}
            figures |= {"mean_difference": compared.mean, "mean_distance": compared.absolute, "correlation": compared.correlation}
        figures |= {"started_at": moment(row.started_at), "until": moment(row.ended_at or row.until)}
        found.append(ShadowOut(name=row.name, version=row.version, running=choosing.running(row), **figures))
    return answer(Shadows(shadows=found))


@blueprint.get("/drift", responses={200: Drift})
def drift_days() -> Response:
    """How each day's faces compare with the hold-out, newest first"""
    found = []
    keys = ("measure", "n", "reference_n", "psi", "psi_limit", "ks", "p", "alarm")
    for day, rows in drift.days(here().database).items():
        measures = [DriftMeasure(**{key: getattr(row, key) for key in keys}) for row in rows]
        found.append(DriftDay(day=day, name=rows[0].model_name, version=rows[0].model_version, measures=measures))
    return answer(Drift(days=found, lacking=reference.lacking(here().database) or None))
