"""The append-only change log; `seq` follows commit order."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from app.stores.tables import changes, counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row of the log: what happened to which gallery item or episode."""

    seq: int
    kind: str
    subject: str
    item_id: int | None


def append(connection: sa.Connection, kind: str, subject: str, item_id: int | None = None) -> int:
    """Add one change in the caller's transaction.

    The counter row stays locked until the commit, so a change with a lower number can never
    become visible after one with a higher.

    Returns:
        The change's `seq`.
    """
    bump = sa.update(counters).where(counters.c.name == "seq").values(value=counters.c.value + 1)
    seq: int = connection.execute(bump.returning(counters.c.value)).scalar_one()
    row = {"seq": seq, "kind": kind, "subject": subject, "item_id": item_id, "at": time.time()}
    connection.execute(sa.insert(changes), row)
    return seq


def head(connection: sa.Connection) -> int:
    """The last `seq` given out; 0 for an empty log."""
    seq: int = connection.execute(sa.select(counters.c.value).where(counters.c.name == "seq")).scalar_one()
    return seq


def after(connection: sa.Connection, seq: int, limit: int = 1000) -> Sequence[Change]:
    """The changes that follow `seq`, oldest first."""
    columns = (changes.c.seq, changes.c.kind, changes.c.subject, changes.c.item_id)
    query = sa.select(*columns).where(changes.c.seq > seq).order_by(changes.c.seq).limit(limit)
    return [
        Change(seq=row.seq, kind=row.kind, subject=row.subject, item_id=row.item_id)
        for row in connection.execute(query)
    ]
