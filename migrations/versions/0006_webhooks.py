"""What the delivery log gained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("endpoints", sa.Column("throttled_until", sa.Float(precision=53), nullable=True))
    op.add_column("events", sa.Column("inbox", sa.String(length=64), nullable=True))
    op.execute("update events set inbox = (select jobs.inbox from jobs where jobs.id = events.subject) where type like 'job.%'")
    op.add_column("delivery_attempts", sa.Column("request_headers", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("delivery_attempts", sa.Column("response_headers", sa.JSON(none_as_null=True), nullable=True))
    op.drop_index("ix_deliveries_due", "deliveries")
    op.create_index("ix_deliveries_due", "deliveries", ["endpoint_id", "status", "next_attempt_at"])
    op.create_index("ix_deliveries_lease", "deliveries", ["status", "lease_until"])
    op.create_index("ix_deliveries_log", "deliveries", ["endpoint_id", "id"])


def downgrade() -> None:
    """Undo."""
    op.drop_index("ix_deliveries_log", "deliveries")
    op.drop_index("ix_deliveries_lease", "deliveries")
    op.drop_index("ix_deliveries_due", "deliveries")
    op.create_index("ix_deliveries_due", "deliveries", ["status", "next_attempt_at"])
    op.drop_column("delivery_attempts", "response_headers")
    op.drop_column("delivery_attempts", "request_headers")
    op.drop_column("events", "inbox")
    op.drop_column("endpoints", "throttled_until")
