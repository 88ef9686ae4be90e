"""How plainly each face shows the blocks of JPEG."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    # null in the rows that are there: their pictures are not looked at again
    op.add_column("faces", sa.Column("blocks", sa.Float(precision=53), nullable=True))


def downgrade() -> None:
    """Undo."""
    op.drop_column("faces", "blocks")
