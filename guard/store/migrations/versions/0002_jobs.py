"""Jobs that train artifacts."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column(
            "uid", sa.String(32), sa.ForeignKey("targets.uid", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("tenant", sa.String(128)),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("progress", sa.Float(53), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False, index=True),
        sa.Column("started_at", sa.Float(53)),
        sa.Column("ended_at", sa.Float(53)),
        sa.Column("runner", sa.String(32)),
        sa.Column("lease", sa.Float(53)),
        sa.Column("version", sa.Integer),
        sa.Column("artifact", sa.String(64)),
        sa.Column("attached", sa.Boolean),
        sa.Column("sealed_request", sa.LargeBinary, nullable=False),
        sa.Column("sealed_report", sa.LargeBinary),
    )
