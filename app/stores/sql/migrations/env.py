"""Alembic's entry: the caller hands over an open connection in `config.attributes`."""

from alembic import context

from app.stores.sql.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
