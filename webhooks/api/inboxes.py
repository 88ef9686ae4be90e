"""Inboxes: the buckets that uploads come in by."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from flask import Response
from pydantic import BaseModel, Field

from pipeline import backfills, inboxes, inboxkeeping
from pipeline.inboxes import Inbox as Place
from pipeline.inboxes import InboxError
from pipeline.jobs import Queue
from webhooks.access import principal
from webhooks.api.blueprints import answer, resource
from webhooks.api.schemas import Strict
from webhooks.api.shapes import moment
from webhooks.context import here
from webhooks.problems import Problem

blueprint = resource("inboxes", "Where uploads come in, and what is done differently for each")


class InboxPath(BaseModel):
    name: str = Field(description="The inbox's name", max_length=64)


class InboxFields(Strict):
    prefix: str | None = Field(None, description="Only keys that begin so", max_length=900)
    suffixes: list[str] | None = Field(None, description="Only keys that end so; empty: those of images", max_length=50)
    results_bucket: str | None = Field(None, description="Empty: where everybody's results go", max_length=255)
    results_prefix: str | None = Field(None, description="Put before every result's key; empty: as the settings have it", max_length=900)
    queue: Queue | None = Field(None, description="How urgent its jobs are")
    authentic_below: float | None = Field(None, description="Threshold in place of the model's; with `manipulated_from`", ge=0, le=1)
    manipulated_from: float | None = Field(None, description="Threshold in place of the model's; with `authentic_below`", ge=0, le=1)
    source: Literal["webhook", "sqs", "none"] | None = Field(None, description="How it is heard of, beside the listing")
    sqs_url: str | None = Field(None, description="The queue that tells of its uploads, if the source is `sqs`", max_length=2000)


class NewInbox(InboxFields):
    name: str = Field(description="Small letters, digits and hyphens", min_length=1, max_length=64)
    bucket: str = Field(max_length=255)


class InboxChange(InboxFields):
    bucket: str | None = Field(None, max_length=255)
    enabled: bool | None = Field(None, description="Whether it takes uploads")
    model_thresholds: bool = Field(False, description="Judge by the model's own thresholds again")


class Inbox(BaseModel):
    name: str
    bucket: str
    prefix: str
    suffixes: list[str]
    results_bucket: str
    results_prefix: str
    queue: Queue
    authentic_below: float | None
    manipulated_from: float | None
    source: str
    sqs_url: str
    enabled: bool
    created_at: str | None = Field(description="null: it is that of the settings")


class Backfill(BaseModel):
    inbox: str
    prefix: str
    seen: int = Field(description="Objects listed")
    made: int = Field(description="Jobs made")
    left_alone: int = Field(description="Objects that are no images")
    started_at: str
    updated_at: str
    finished_at: str | None = Field(description="null: it goes on, or was stopped")


class Inboxes(BaseModel):
    inboxes: list[Inbox]
    backfills: list[Backfill]


@blueprint.get("/inboxes", responses={200: Inboxes})
def listing() -> Response:
    """List inboxes, that of the settings first, and how far back-fills are"""
    context, who = here(), principal()
    places = [place for place in inboxes.directory(context.settings, context.database).inboxes if who.may_see(place.name)]
    filled = [one for one in backfills.all_of_them(context.database) if who.may_see(one.inbox)]
    return answer(Inboxes(inboxes=[_shape(place) for place in places], backfills=[_progress(one) for one in filled]))


@blueprint.post("/inboxes", responses={201: Inbox})
def create(body: NewInbox) -> Response:
    """Open an inbox; what lies there already is left to a back-fill"""
    context = here()
    place = Place(name=body.name, bucket=body.bucket, **_given(body, "name", "bucket"))
    made = _done(lambda: inboxkeeping.add(context.database, context.settings, place, by=principal().actor))
    return answer(_shape(made), 201, Location=f"/v1/inboxes/{made.name}")


@blueprint.get("/inboxes/<string:name>", responses={200: Inbox})
def one(path: InboxPath) -> Response:
    """One inbox"""
    return answer(_shape(_find(path.name)))


@blueprint.patch("/inboxes/<string:name>", responses={200: Inbox})
def change(path: InboxPath, body: InboxChange) -> Response:
    """Change an inbox; what is not named stays as it is"""
    context = here()
    _find(path.name)
    changes = _given(body, "model_thresholds")
    if body.model_thresholds:
        changes |= {"authentic_below": None, "manipulated_from": None}
    made = _done(lambda: inboxkeeping.change(context.database, context.settings, path.name, by=principal().actor, **changes))
    return answer(_shape(made))


@blueprint.delete("/inboxes/<string:name>", responses={204: None})
def remove(path: InboxPath) -> Response:
    """Give up an inbox that has no jobs"""
    _find(path.name)
    _done(lambda: inboxkeeping.remove(here().database, path.name, by=principal().actor))
    return Response(status=204)


def _find(name: str) -> Place:
    context = here()
    try:
        if not principal().may_see(name):
            raise InboxError("It is somebody else's.")
        return inboxes.get(context.settings, context.database, name)
    except InboxError as error:
        raise Problem(404, f"There is no inbox {name}.") from error


def _done(deed: Any) -> Any:
    try:
        return deed()
    except InboxError as error:
        raise Problem(422, str(error)) from error


def _given(body: InboxFields, *without: str) -> dict[str, Any]:
    given = {name: value for name, value in body.model_dump(exclude_unset=True, exclude_none=True).items() if name not in without}
    if "suffixes" in given:
        given["suffixes"] = tuple(suffix.lower() for suffix in given["suffixes"])
    return given


def _shape(place: Place) -> Inbox:
    return Inbox(**(asdict(place) | {"created_at": moment(place.created_at) if place.created_at else None}))


def _progress(one: backfills.Progress) -> Backfill:
    times = {name: moment(getattr(one, name)) for name in ("started_at", "updated_at", "finished_at")}
    return Backfill(**(asdict(one) | times))
