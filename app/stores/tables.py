"""The SQL schema, in SQLAlchemy Core; `migrations/` brings a database to it."""

import sqlalchemy as sa

metadata = sa.MetaData()

counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

changes = sa.Table(
    "changes",
    metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("item_id", sa.BigInteger),
    sa.Column("at", sa.Float, nullable=False),
)

galleries = sa.Table(
    "galleries",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

items = sa.Table(
    "items",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("gallery_id", sa.ForeignKey("galleries.id", ondelete="CASCADE"), nullable=False),
    sa.Column("external_id", sa.String(128), nullable=False),
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
# One live row an external id; replaced and deleted rows stay until a vacuum.
sa.Index(
    "items_live",
    items.c.gallery_id,
    items.c.external_id,
    unique=True,
    sqlite_where=items.c.deleted_seq.is_(None),
    postgresql_where=items.c.deleted_seq.is_(None),
)

episodes = sa.Table(
    "episodes",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(128)),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("method", sa.String(32), nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),
)

supports = sa.Table(
    "supports",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("episode_id", sa.ForeignKey("episodes.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("way", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False, index=True),
    sa.Column("media_type", sa.String(64), nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),
)
