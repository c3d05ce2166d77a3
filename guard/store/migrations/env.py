"""What alembic runs: the steps, on the connection that `guard.store.database` hands over."""

from alembic import context

from guard.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
