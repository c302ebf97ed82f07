"""Vectors beside their items by fingerprint, class sets, idempotency keys, jobs, facts."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    """Move vectors into tables of their own and add what later parts need; no row is lost."""
    facts = op.create_table(
        "facts", sa.Column("name", sa.String(64), primary_key=True), sa.Column("value", sa.Text, nullable=False)
    )
    op.bulk_insert(facts, [{"name": "database_id", "value": secrets.token_hex(16)}])
    op.execute("INSERT INTO counters (name, value) VALUES ('vacuumed', 0)")
    op.execute(
        "INSERT INTO facts (name, value) SELECT 'fingerprint', fingerprint FROM"
        " (SELECT fingerprint FROM items WHERE deleted_seq IS NULL UNION SELECT fingerprint FROM episodes) AS known"
        " LIMIT 1"
    )
    _move_item_vectors()
    _move_support_vectors()
    _create_class_sets()
    _create_idempotency_and_jobs()


def _move_item_vectors() -> None:
    op.create_table(
        "item_vectors",
        sa.Column("item_id", _ID, sa.ForeignKey("items.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("dtype", sa.String(8), nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.execute(
        "INSERT INTO item_vectors (item_id, fingerprint, dtype, vector)"
        " SELECT id, fingerprint, 'fp32', vector FROM items"
    )
    op.add_column("items", sa.Column("added_seq", sa.BigInteger, nullable=False, server_default="0"))
    op.execute("UPDATE items SET added_seq = seq")
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("items", "added_seq", server_default=None)
    op.drop_column("items", "vector")
    op.drop_column("items", "fingerprint")
    op.create_index("ix_items_added_seq", "items", ["added_seq"])
    op.create_index("ix_items_deleted_seq", "items", ["deleted_seq"])


def _move_support_vectors() -> None:
    op.create_table(
        "support_vectors",
        sa.Column("support_id", sa.String(64), sa.ForeignKey("supports.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.execute(
        "INSERT INTO support_vectors (support_id, fingerprint, vector)"
        " SELECT supports.id, episodes.fingerprint, supports.vector"
        " FROM supports JOIN episodes ON episodes.id = supports.episode_id"
    )
    op.drop_column("supports", "vector")
    op.drop_column("episodes", "fingerprint")
    op.create_index("ix_episodes_expires_at", "episodes", ["expires_at"])


def _create_class_sets() -> None:
    op.create_table(
        "class_sets",
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("classes", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
    )
    op.create_table(
        "class_set_vectors",
        sa.Column("name", _NAME, sa.ForeignKey("class_sets.name", ondelete="CASCADE"), primary_key=True),
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("vectors", sa.LargeBinary, nullable=False),
    )


def _create_idempotency_and_jobs() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("token", sa.String(64), nullable=False),
        sa.Column("held_until", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False, index=True),
        sa.Column("status", sa.Integer),
        sa.Column("headers", sa.JSON),
        sa.Column("body", sa.LargeBinary),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("done", sa.BigInteger, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
    )
