"""Several inboxes, and which one a job came through."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "inboxes",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("bucket", sa.String(length=255), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("suffixes", sa.JSON(), nullable=False),
        sa.Column("results_bucket", sa.String(length=255), nullable=False),
        sa.Column("results_prefix", sa.Text(), nullable=False),
        sa.Column("queue", sa.String(length=16), nullable=False),
        sa.Column("authentic_below", sa.Float(precision=53), nullable=True),
        sa.Column("manipulated_from", sa.Float(precision=53), nullable=True),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("sqs_url", sa.Text(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index("ix_inboxes_bucket", "inboxes", ["bucket"])
    op.add_column("jobs", sa.Column("inbox", sa.String(length=64), nullable=False, server_default="default"))
    op.create_index("ix_jobs_inbox", "jobs", ["inbox", "created_at", "id"])
    op.add_column("endpoints", sa.Column("inbox", sa.String(length=64), nullable=True))


def downgrade() -> None:
    """Undo."""
    op.drop_column("endpoints", "inbox")
    op.drop_index("ix_jobs_inbox", "jobs")
    op.drop_column("jobs", "inbox")
    op.drop_table("inboxes")
