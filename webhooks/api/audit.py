"""The audit: who did what, when."""

from __future__ import annotations

from flask import Response

from pipeline import audit
from webhooks.api import people
from webhooks.api.blueprints import answer, resource
from webhooks.api.people import Audit, AuditQuery
from webhooks.context import here

blueprint = resource("audit", "Who did what; written with every deed, never changed")


@blueprint.get("/audit", responses={200: Audit})
def listing(query: AuditQuery) -> Response:
    """List deeds, newest first"""
    rows, following = audit.page(
        here().database, actor=query.actor, action=query.action, subject=query.subject, before=query.before, limit=query.limit
    )
    return answer(Audit(deeds=[people.deed(row) for row in rows], next=following))
