"""How many tokens each account has used on which day."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("day", sa.Integer, primary_key=True),
        sa.Column("account", sa.String(160), primary_key=True),
        sa.Column("tokens", sa.BigInteger, nullable=False),
    )
