"""Crops are stored as they are."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    if op.get_bind().dialect.name == "postgresql":
        # Pixels of a photograph do not get smaller by PostgreSQL's compression: spare it the attempt on every face.
        op.execute("alter table faces alter column crop set storage external")


def downgrade() -> None:
    """Take back."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("alter table faces alter column crop set storage extended")
