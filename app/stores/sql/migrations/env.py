"""Alembic's entry: the caller hands over an open connection in `config.attributes`."""

from alembic import context

from app.stores.sql.tables import schema

context.configure(connection=context.config.attributes["connection"], target_metadata=schema)
context.run_migrations()
