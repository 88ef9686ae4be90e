"""What people say of faces."""

from __future__ import annotations

from flask import Response
from pydantic import BaseModel, Field

from pipeline import feedback
from webhooks import acting
from webhooks.access import principal
from webhooks.api.blueprints import answer, resource
from webhooks.api.schemas import FacePath
from webhooks.api.shapes import moment
from webhooks.context import here

blueprint = resource("labels", "What people say of faces: training learns from it")


class LabelBody(BaseModel):
    label: str = Field(description="`manipulated` or `authentic`", max_length=16)
    note: str = Field("", description="Why", max_length=feedback.MAX_NOTE)


class Said(BaseModel):
    by: str
    label: str
    decides: bool = Field(description="Theirs alone settles it: they have the role of a reviewer or more")
    at: str
    note: str


class FaceLabel(BaseModel):
    state: str = Field(description="`pending`: one more has to agree; `accepted`; `disputed`; empty: nobody has said anything")
    label: str | None = Field(description="Where accepted")
    said: list[Said]
    problem: str | None = Field(description="Why its picture could not be taken into the data set")


@blueprint.post("/jobs/<string:id>/faces/<int:index>/label", responses={200: FaceLabel})
def label(path: FacePath, body: LabelBody) -> Response:
    """Say of a face what it is, in place of what you said before

    One person with the role of a reviewer settles it; without one, two who agree. Those who disagree make it disputed.
    """
    context = here()
    row = acting.find(context, path.id)
    return _answer(feedback.label(context.database, principal(), row.id, path.index, body.label, note=body.note))


@blueprint.delete("/jobs/<string:id>/faces/<int:index>/label", responses={200: FaceLabel})
def withdraw(path: FacePath) -> Response:
    """Take back what you said of a face"""
    context = here()
    row = acting.find(context, path.id)
    return _answer(feedback.withdraw(context.database, principal(), row.id, path.index))


@blueprint.get("/jobs/<string:id>/faces/<int:index>/label", responses={200: FaceLabel})
def standing(path: FacePath) -> Response:
    """What was said of a face, and what it comes to"""
    context = here()
    row = acting.find(context, path.id)
    return _answer(feedback.standings(context.database, row.id).get(path.index, feedback.Standing()))


def _answer(found: feedback.Standing) -> Response:
    said = [Said(by=one.actor, label=one.label, decides=one.decides, at=moment(one.at), note=one.note) for one in found.said]
    return answer(FaceLabel(state=found.state, label=found.label, said=said, problem=found.problem))
