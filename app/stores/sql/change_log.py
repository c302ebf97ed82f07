"""The append-only change log; `seq` follows commit order."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import sqlalchemy as sa

from app.stores.sql.tables import changes, counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row of the log: what happened to which gallery item, episode or class set."""

    seq: int
    kind: str
    subject: str
    item_id: int | None


def take(connection: sa.Connection, count: int = 1) -> range:
    """The next numbers, for the caller's transaction alone.

    The counter row stays locked until the commit, so a change with a lower number can never
    become visible after one with a higher.
    """
    bump = sa.update(counters).where(counters.c.name == "seq").values(value=counters.c.value + count)
    last: int = connection.execute(bump.returning(counters.c.value)).scalar_one()
    return range(last - count + 1, last + 1)


def note(
    connection: sa.Connection, seqs: Sequence[int], kind: str, subject: str, item_ids: Sequence[int] | None = None
) -> None:
    """Write one change under each of the numbers taken; `item_ids` are the rows they are about, if any."""
    now = time.time()
    rows = [
        {"seq": seq, "kind": kind, "subject": subject, "item_id": item_id, "at": now}
        for seq, item_id in zip(seqs, item_ids or repeat(None, len(seqs)), strict=True)
    ]
    connection.execute(sa.insert(changes), rows)


def append(connection: sa.Connection, kind: str, subject: str, item_id: int | None = None) -> int:
    """Add one change in the caller's transaction; returns its `seq`."""
    seqs = take(connection)
    note(connection, seqs, kind, subject, None if item_id is None else [item_id])
    return seqs[0]


def head(connection: sa.Connection) -> int:
    """The last `seq` given out; 0 for an empty log."""
    seq: int = connection.execute(sa.select(counters.c.value).where(counters.c.name == "seq")).scalar_one()
    return seq


def vacuumed(connection: sa.Connection) -> int:
    """The `seq` up to which the log and the rows it made dead were thrown away."""
    seq: int = connection.execute(sa.select(counters.c.value).where(counters.c.name == "vacuumed")).scalar_one()
    return seq


def after(connection: sa.Connection, seq: int, limit: int = 1000) -> Sequence[Change]:
    """The changes that follow `seq`, oldest first."""
    columns = (changes.c.seq, changes.c.kind, changes.c.subject, changes.c.item_id)
    query = sa.select(*columns).where(changes.c.seq > seq).order_by(changes.c.seq).limit(limit)
    return [
        Change(seq=row.seq, kind=row.kind, subject=row.subject, item_id=row.item_id)
        for row in connection.execute(query)
    ]
