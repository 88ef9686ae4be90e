"""What happened long ago is forgotten: webhook events whose deliveries are over, with their log."""

from __future__ import annotations

from time import monotonic

from sqlalchemy import and_, delete, exists, or_, select
from sqlalchemy.orm import aliased

from pipeline.changes import ago
from pipeline.database import Database, DeliveryRow, EndpointRow, EventRow

AT_ONCE = 500
"""So many events, each with its deliveries and their attempts, go in one transaction."""
BUDGET_S = 60.0
"""After so long a run ends, and the next one goes on."""


def prune(db: Database, *, older_s: float) -> int:
    """Delete the events that are older than `older_s` seconds by the database's clock, and their deliveries; returns how many events.

    Kept are those that an enabled endpoint still waits for, and the last one about each model, training or endpoint: the next is numbered
    after it, where a job counts for itself.
    """
    newer, waiting = aliased(EventRow), and_(DeliveryRow.event_id == EventRow.id, DeliveryRow.status == "pending")
    awaited = exists().where(waiting, EndpointRow.id == DeliveryRow.endpoint_id, EndpointRow.disabled_at.is_(None))
    followed = exists().where(newer.subject == EventRow.subject, newer.sequence > EventRow.sequence)
    old = select(EventRow.id).where(EventRow.created_at < ago(older_s), ~awaited, or_(EventRow.type.like("job.%"), followed))
    old = old.order_by(EventRow.created_at).limit(AT_ONCE).with_for_update(skip_locked=True, of=EventRow)
    count = 0
    until = monotonic() + BUDGET_S
    while monotonic() < until:
        with db.write() as session:
            found = session.scalars(old).all()
            # asked again: somebody may have had it sent once more since it was found
            gone = delete(EventRow).where(EventRow.id.in_(found), ~awaited).returning(EventRow.id)
            count += len(session.scalars(gone, execution_options={"synchronize_session": False}).all())
        if len(found) < AT_ONCE:
            break
    return count
