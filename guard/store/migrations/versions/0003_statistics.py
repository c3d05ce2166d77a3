"""PostgreSQL copies values into the statistics of its planner; sealed ones shall lie in their rows alone."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SEALED = (
    ("targets", "sealed_id"),
    ("target_versions", "sealed"),
    ("decisions", "sealed_text"),
    ("jobs", "sealed_request"),
    ("jobs", "sealed_report"),
)


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table, column in _SEALED:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0")
