"""What a write with an idempotency key leaves in its own transaction."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    """Keys say that their write was done, and are found by their token."""
    op.add_column("idempotency_keys", sa.Column("done_seq", sa.BigInteger))
    op.create_index("ix_idempotency_keys_token", "idempotency_keys", ["token"])
