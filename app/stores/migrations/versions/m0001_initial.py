"""The first schema: change log, galleries, items, episodes and their supports."""

import sqlalchemy as sa
from alembic import op

from app.stores.tables import metadata

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

TABLES = ("counters", "changes", "galleries", "items", "episodes", "supports")


def upgrade() -> None:
    """Create the tables and the counter row that `seq` is taken from."""
    bind = op.get_bind()
    metadata.create_all(bind, tables=[metadata.tables[name] for name in TABLES])
    bind.execute(sa.insert(metadata.tables["counters"]).values(name="seq", value=0))
