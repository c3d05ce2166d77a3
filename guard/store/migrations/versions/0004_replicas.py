"""Which snapshot changed what, which artifacts shall be nowhere, and who serves it all."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_END_OLDER = """
UPDATE target_versions SET until = 0 WHERE NOT EXISTS (
    SELECT 1 FROM targets
    WHERE targets.uid = target_versions.uid
        AND targets.version = target_versions.version AND targets.deleted_at IS NULL
)
"""  # when each ended is not known


def upgrade() -> None:
    zero = sa.text("0")
    for table in ("targets", "tombstones"):
        op.add_column(table, sa.Column("changed", sa.Integer, nullable=False, server_default=zero))
        op.create_index(f"ix_{table}_changed", table, ["changed"])
    op.add_column("target_versions", sa.Column("since", sa.Integer, nullable=False, server_default=zero))
    op.add_column("target_versions", sa.Column("until", sa.Integer))
    op.execute(_END_OLDER)
    op.create_table(
        "erasures",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("changed", sa.Integer, nullable=False, index=True),
    )
    op.create_table(
        "replicas",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("snapshot", sa.Integer, nullable=False),
        sa.Column("keys", sa.Integer, nullable=False),
        sa.Column("seen_at", sa.Float(53), nullable=False),
        sa.Column("lease", sa.Float(53), nullable=False),
    )
