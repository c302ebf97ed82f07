"""Caches which rows of a gallery pass a filter, in step with the change log."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.errors import DeadlineExceeded
from app.runtime.lru import ByteLru
from app.stores.filters import Filter, filter_condition
from app.stores.sql import change_log
from app.stores.sql.database import Database
from app.stores.sql.engines import READ_LIMIT_S
from app.stores.sql.tables import IS_LIVE, changes, items

MAX_BYTES = 64 << 20
MAX_CHANGED = 2048  # after more changes than this all rows are selected again
_OVERHEAD_BYTES = 512  # of a cached answer besides its rows

Ids = NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class _Answer:
    """The rows that passed at `seq`, ascending; `lock` is held while they are selected."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    seq: int = 0
    ids: Ids | None = None


class FilteredRows:
    """Thread-safe LRU cache of the rows that pass a filter, by gallery and filter.

    Only SQL evaluates filters: an entry is SQL's answer at a `seq`, and rows that changed since are queried again.
    """

    def __init__(self, database: Database, *, max_bytes: int = MAX_BYTES) -> None:
        self._database = database
        self._answers = ByteLru[tuple[int, bytes], _Answer](max_bytes)
        self._lock = threading.Lock()

    def passing(self, gallery_id: int, where: Filter) -> Ids:
        """Return rows of a gallery's live items that pass, ascending; rows deleted since may be among them.

        Concurrent calls for the same filter share one query. Raises as `Database.read`.
        """
        # Hashed by its text: in Python `1`, `1.0` and `True` are one key.
        key = (gallery_id, hashlib.sha256(repr(where).encode()).digest())
        with self._lock:
            answer = self._answers.get(key)
            if answer is None:
                answer = _Answer()
                self._answers.put(key, answer, _OVERHEAD_BYTES)
        with _acquired(answer.lock), self._database.read() as connection:
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
        self._answers.put(key, answer, ids.nbytes + _OVERHEAD_BYTES)
        return ids


@contextlib.contextmanager
def _acquired(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock. Raises DeadlineExceeded if its holder takes longer than a read may."""
    if not lock.acquire(timeout=READ_LIMIT_S):
        raise DeadlineExceeded("The query took longer than the store allows.")
    try:
        yield
    finally:
        lock.release()


def _changed_since(connection: sa.Connection, seq: int) -> Ids | None:
    """Return rows written since a `seq`, ascending; None if they are too many or the log does not name them."""
    if change_log.vacuumed(connection) > seq:
        return None
    about_items = sa.or_(changes.c.item_id.is_not(None), changes.c.kind == "items.delete")
    query = sa.select(changes.c.item_id).where(changes.c.seq > seq, about_items)
    rows = connection.execute(query.limit(MAX_CHANGED + 1)).scalars().all()
    # A bulk delete is one change without a row.
    return None if None in rows or len(rows) > MAX_CHANGED else np.unique(np.array(rows, np.int64))


def _select(connection: sa.Connection, gallery_id: int, where: Filter, among: Ids | None) -> Ids:
    """Return rows of the live items that pass, ascending: of all, or of those in `among`."""
    query = sa.select(items.c.id).where(items.c.gallery_id == gallery_id, IS_LIVE)
    query = query.where(filter_condition(where, items.c.metadata, connection.dialect.name))
    if among is not None:
        query = query.where(items.c.id.in_(among.tolist()))
    return np.array(connection.execute(query.order_by(items.c.id)).scalars().all(), np.int64)
