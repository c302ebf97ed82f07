"""Single values of the whole database: its identity, the active bundle, whether a backup holds images."""

import secrets

import sqlalchemy as sa

from app.errors import FingerprintMismatch
from app.stores.sql.tables import database_metadata as table

DATABASE_ID = "database_id"
FINGERPRINT = "fingerprint"
PREVIOUS_FINGERPRINT = "previous_fingerprint"  # of the bundle to roll back to
SESSION_SECRET = "session_secret"  # 32 random bytes as hex
IMAGES_HELD_UNTIL = "pictures_held_until"  # seconds since 1970, while a backup copies images


def query(name: str) -> sa.Select[str]:
    """Return the query for a value."""
    return sa.select(table.c.value).where(table.c.name == name)


def read(connection: sa.Connection, name: str) -> str | None:
    """Return a value; None if it was never written."""
    found: str | None = connection.execute(query(name)).scalar_one_or_none()
    return found


def write(connection: sa.Connection, name: str, value: str) -> None:
    """Set a value in the caller's transaction."""
    changed = connection.execute(sa.update(table).where(table.c.name == name).values(value=value))
    if changed.rowcount == 0:  # no upsert: the two databases spell it differently
        connection.execute(sa.insert(table).values(name=name, value=value))


def renew_identity(connection: sa.Connection) -> None:
    """Give the database a new identity, so that snapshots of another history are not used."""
    write(connection, DATABASE_ID, secrets.token_hex(16))


def session_secret(connection: sa.Connection) -> bytes:
    """Return the secret under which sessions are signed; the first process makes it."""
    if (found := read(connection, SESSION_SECRET)) is None:
        found = secrets.token_hex(32)
        write(connection, SESSION_SECRET, found)
    return bytes.fromhex(found)


def require_fingerprint(connection: sa.Connection, fingerprint: str) -> None:
    """Check that a bundle is the active one: vectors of different bundles are never mixed.

    Raises:
        FingerprintMismatch: another bundle's vectors are active.
    """
    if read(connection, FINGERPRINT) != fingerprint:
        raise mismatch()


def mismatch() -> FingerprintMismatch:
    """Return the error of a process whose bundle is not the active one."""
    return FingerprintMismatch("The stored vectors are of another bundle: run `vermouth reembed`, or serve that one.")
