"""Labels, data sets, decisions, shadow scores and drift; signatures of model versions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "labels",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("face", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("label", sa.String(length=16), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "face", "actor"),
    )
    op.create_table(
        "face_labels",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("face", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("label", sa.String(length=16), nullable=True),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.Column("collected_at", sa.Float(precision=53), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "face"),
    )
    op.create_index("ix_face_labels_state", "face_labels", ["state", "collected_at"])
    op.create_table(
        "items",
        sa.Column("collection", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("suffix", sa.String(length=8), nullable=False),
        sa.Column("fake", sa.Boolean(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("manipulation", sa.String(length=64), nullable=False),
        sa.Column("split", sa.String(length=8), nullable=False),
        sa.Column("group", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=True),
        sa.Column("face", sa.Integer(), nullable=True),
        sa.Column("added_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("collection", "sha256"),
    )
    op.create_table(
        "collections",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_index("ix_collections_name", "collections", ["name", "created_at"])
    op.create_table(
        "pins",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("suffix", sa.String(length=8), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("champion_name", sa.String(length=255), nullable=True),
        sa.Column("champion_version", sa.String(length=64), nullable=True),
        sa.Column("training_id", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("checks", sa.JSON(), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("picture", sa.Text(), nullable=False),
        sa.Column("dataset", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("settled_by", sa.String(length=255), nullable=True),
        sa.Column("settled_at", sa.Float(precision=53), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_decisions_created", "decisions", ["created_at"])
    op.create_index("ix_decisions_model", "decisions", ["name", "version"])
    op.create_table(
        "shadows",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("share", sa.Float(precision=53), nullable=False),
        sa.Column("started_at", sa.Float(precision=53), nullable=False),
        sa.Column("until", sa.Float(precision=53), nullable=False),
        sa.Column("ended_at", sa.Float(precision=53), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "shadow_scores",
        sa.Column("shadow_id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("face", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("champion_score", sa.Float(precision=53), nullable=False),
        sa.Column("champion_verdict", sa.String(length=16), nullable=False),
        sa.Column("champion_version", sa.String(length=64), nullable=False),
        sa.Column("score", sa.Float(precision=53), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["shadow_id"], ["shadows.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("shadow_id", "job_id", "face"),
    )
    op.create_table(
        "drift_references",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("dataset", sa.String(length=64), nullable=False),
        sa.Column("samples", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("name", "version"),
    )
    op.create_table(
        "drift",
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("measure", sa.String(length=16), nullable=False),
        sa.Column("model_name", sa.String(length=255), nullable=False),
        sa.Column("model_version", sa.String(length=64), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("reference_n", sa.Integer(), nullable=False),
        sa.Column("psi", sa.Float(precision=53), nullable=False),
        sa.Column("psi_limit", sa.Float(precision=53), nullable=False),
        sa.Column("ks", sa.Float(precision=53), nullable=False),
        sa.Column("p", sa.Float(precision=53), nullable=False),
        sa.Column("alarm", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("day", "measure"),
    )
    op.add_column("models", sa.Column("signature", sa.Text(), nullable=True))


def downgrade() -> None:
    """Undo."""
    op.drop_column("models", "signature")
    op.drop_table("drift")
    op.drop_table("drift_references")
    op.drop_table("shadow_scores")
    op.drop_table("shadows")
    op.drop_index("ix_decisions_created", table_name="decisions")
    op.drop_index("ix_decisions_model", table_name="decisions")
    op.drop_table("decisions")
    op.drop_table("pins")
    op.drop_index("ix_collections_name", table_name="collections")
    op.drop_table("collections")
    op.drop_table("items")
    op.drop_index("ix_face_labels_state", table_name="face_labels")
    op.drop_table("face_labels")
    op.drop_table("labels")
