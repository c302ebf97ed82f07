"""The first schema: change log, galleries, items, episodes and their supports."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
_ITEM = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")


def upgrade() -> None:
    """Create the tables and the counter row that `seq` is taken from."""
    counters = op.create_table(
        "counters",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "changes",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("item_id", sa.BigInteger),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "galleries",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("name", _NAME, nullable=False, unique=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    _create_items()
    _create_episodes()
    op.bulk_insert(counters, [{"name": "seq", "value": 0}])


def _create_items() -> None:
    op.create_table(
        "items",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("gallery_id", _ID, sa.ForeignKey("galleries.id", ondelete="CASCADE"), nullable=False),
        sa.Column("external_id", _ITEM, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, index=True),
        sa.Column("media_type", sa.String(64), nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("caption", sa.Text),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("deleted_seq", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    live = sa.text("deleted_seq IS NULL")
    op.create_index(
        "items_live", "items", ["gallery_id", "external_id"], unique=True, sqlite_where=live, postgresql_where=live
    )


def _create_episodes() -> None:
    op.create_table(
        "episodes",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(128)),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("method", sa.String(32), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
    )
    op.create_table(
        "supports",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column(
            "episode_id", sa.String(64), sa.ForeignKey("episodes.id", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("way", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, index=True),
        sa.Column("media_type", sa.String(64), nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
