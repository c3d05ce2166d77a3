"""Keys that speak for tenants, that took the place of others, and when each was used last."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("keys", sa.Column("speaks", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("keys", sa.Column("successor", sa.String(32)))
    op.add_column("keys", sa.Column("used_at", sa.Float(53)))
