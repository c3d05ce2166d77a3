"""The trail of what admins did, and from which snapshot on the history of targets is whole."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False
        ),
        sa.Column("time", sa.Float(53), nullable=False, index=True),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("role", sa.String(16)),
        sa.Column("tenant", sa.String(128)),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("uid", sa.String(32), index=True),
        sa.Column("subject", sa.String(64)),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("snapshot", sa.Integer, index=True),
        sa.Column("request_id", sa.String(128)),
        sa.Column("source", sa.String(64)),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("mac", sa.String(64), nullable=False),
    )
    op.execute("INSERT INTO meta (name, value) SELECT 'history', value FROM meta WHERE name = 'snapshot'")
