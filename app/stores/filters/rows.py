"""The rows that pass a filter, kept from search to search and brought up to date by what the log says has changed."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.errors import DeadlineExceeded
from app.runtime.lru import BoundedLru
from app.stores.filters.sql import filter_condition
from app.stores.filters.tree import Filter
from app.stores.sql import change_log
from app.stores.sql.database import Database
from app.stores.sql.engines import READ_LIMIT_S
from app.stores.sql.tables import changes, items

MAX_BYTES = 64 << 20
MAX_CHANGED = 2048
"""After more changes than this the rows are chosen anew."""

Ids = NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class _Answer:
    """The rows that passed at `seq`, ascending; `lock` is held while they are worked out."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    seq: int = 0
    ids: Ids | None = None


class FilteredRows:
    """Answers by gallery and filter, the least recently used dropped first; used by several threads.

    SQL says which rows pass: what is kept is SQL's answer at a `seq`, and rows that changed since are asked for again.
    """

    def __init__(self, database: Database, *, max_bytes: int = MAX_BYTES) -> None:
        self._database = database
        self._answers = BoundedLru(_Answer, max_bytes=max_bytes)

    def passing(self, gallery_id: int, where: Filter) -> Ids:
        """Rows of a gallery's live items that pass, ascending; deleted ones may be among them, which no index holds.

        Who asks what is being worked out already waits for that. Raises as `Database.read`.
        """
        # Not the filter itself: to Python `1`, `1.0` and `True` are one key.
        key = (gallery_id, hashlib.sha256(repr(where).encode()).digest())
        answer = self._answers.entry(key)
        with _held(answer.lock), self._database.read() as connection:
            head = change_log.head(connection)
            changed = None if answer.ids is None else _changed_since(connection, answer.seq)
            if answer.ids is None or changed is None:
                ids = _select(connection, gallery_id, where, None)
            elif len(changed):
                again = _select(connection, gallery_id, where, changed)
                ids = np.union1d(np.setdiff1d(answer.ids, changed, assume_unique=True), again)
            else:
                ids = answer.ids
            answer.ids, answer.seq = ids, head
        self._answers.weigh(key, answer, ids.nbytes)
        return ids


@contextlib.contextmanager
def _held(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock. Raises DeadlineExceeded where who holds it takes as long as a read may."""
    if not lock.acquire(timeout=READ_LIMIT_S):
        raise DeadlineExceeded("The query took longer than the store allows.")
    try:
        yield
    finally:
        lock.release()


def _changed_since(connection: sa.Connection, seq: int) -> Ids | None:
    """Rows written since a `seq`, ascending; None where they are too many or the log cannot say (bulk deletes)."""
    if change_log.vacuumed(connection) > seq:
        return None
    about_items = sa.or_(changes.c.item_id.is_not(None), changes.c.kind == "items.delete")
    query = sa.select(changes.c.item_id).where(changes.c.seq > seq, about_items)
    rows = connection.execute(query.limit(MAX_CHANGED + 1)).scalars().all()
    return None if None in rows or len(rows) > MAX_CHANGED else np.unique(np.array(rows, np.int64))


def _select(connection: sa.Connection, gallery_id: int, where: Filter, among: Ids | None) -> Ids:
    """Rows of the live items that pass, ascending: all, or those among some."""
    query = sa.select(items.c.id).where(items.c.gallery_id == gallery_id, items.c.deleted_seq.is_(None))
    query = query.where(filter_condition(where, items.c.metadata, connection.dialect.name))
    if among is not None:
        query = query.where(items.c.id.in_(among.tolist()))
    return np.array(connection.execute(query.order_by(items.c.id)).scalars().all(), np.int64)
