"""The append-only change log; `seq` follows commit order."""

import time
from collections.abc import Sequence
from itertools import repeat

import sqlalchemy as sa

from app.stores.sql.tables import changes, counters

Change = sa.Row[int, str, str, int | None]  # seq, kind, subject, item_id


def take(connection: sa.Connection, count: int = 1) -> range:
    """Return the next numbers, for the caller's transaction alone."""
    # The row stays locked until the commit: no change becomes visible after one with a higher number.
    bump = sa.update(counters).where(counters.c.name == "seq").values(value=counters.c.value + count)
    last: int = connection.execute(bump.returning(counters.c.value)).scalar_one()
    return range(last - count + 1, last + 1)


def note(
    connection: sa.Connection, seqs: Sequence[int], kind: str, subject: str, item_ids: Sequence[int] | None = None
) -> None:
    """Write one change under each number of `take`; `item_ids` are the rows they are about, if any."""
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
    """Return the last `seq` taken; 0 for an empty log."""
    return _counter(connection, "seq")


def vacuumed(connection: sa.Connection) -> int:
    """Return the `seq` up to which the log and the rows that died by then were removed."""
    return _counter(connection, "vacuumed")


def after(connection: sa.Connection, seq: int, limit: int = 1000) -> Sequence[Change]:
    """Return the changes that follow `seq`, oldest first."""
    columns = (changes.c.seq, changes.c.kind, changes.c.subject, changes.c.item_id)
    query = sa.select(*columns).where(changes.c.seq > seq).order_by(changes.c.seq).limit(limit)
    return connection.execute(query).all()


def _counter(connection: sa.Connection, name: str) -> int:
    value: int = connection.execute(sa.select(counters.c.value).where(counters.c.name == name)).scalar_one()
    return value
