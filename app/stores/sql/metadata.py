"""Single facts of the whole database: its identity and the bundle whose vectors are served."""

import secrets

import sqlalchemy as sa

from app.errors import FingerprintMismatch
from app.stores.sql.tables import database_metadata

DATABASE_ID = "database_id"
FINGERPRINT = "fingerprint"
PREVIOUS_FINGERPRINT = "previous_fingerprint"
IMAGES_HELD_UNTIL = "pictures_held_until"


def query(name: str) -> sa.Select[str]:
    """Asks for a fact's value."""
    return sa.select(database_metadata.c.value).where(database_metadata.c.name == name)


def read(connection: sa.Connection, name: str) -> str | None:
    """A fact's value, None where it was never written."""
    found: str | None = connection.execute(query(name)).scalar_one_or_none()
    return found


def write(connection: sa.Connection, name: str, value: str) -> None:
    """Set a fact in the caller's transaction."""
    changed = connection.execute(
        sa.update(database_metadata).where(database_metadata.c.name == name).values(value=value)
    )
    if changed.rowcount == 0:
        connection.execute(sa.insert(database_metadata).values(name=name, value=value))


def renew_identity(connection: sa.Connection) -> None:
    """Give the database a new identity, so that snapshots made of another history are not taken for its own."""
    write(connection, DATABASE_ID, secrets.token_hex(16))


def require_fingerprint(connection: sa.Connection, fingerprint: str) -> None:
    """Refuse to mix vectors: only the active bundle may write or be compared with.

    Raises:
        FingerprintMismatch: another bundle's vectors are the active ones.
    """
    if read(connection, FINGERPRINT) != fingerprint:
        raise mismatch()


def mismatch() -> FingerprintMismatch:
    """The error of a process whose bundle is not the active one."""
    return FingerprintMismatch("What is stored was embedded by another bundle: run `vermouth reembed`, or go back.")
