"""Reads vectors from SQL for the indexes: all of a gallery, or what was added and removed after a `seq`."""

from collections.abc import Mapping, Sequence

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.runtime.telemetry import get_logger
from app.stores.index.delta import Entry, mark_of
from app.stores.sql.checksums import verified
from app.stores.sql.tables import IS_LIVE, items, select_vectors

ROWS_AT_ONCE = 8192
LOGGED = 10  # damaged items that a line of the log names
_NO_VECTOR = np.empty(0, np.float32)


def read_all(
    connection: sa.Connection, gallery_id: int, fingerprint: str, dimension: int | None
) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """Return vectors [N, D] float32, ascending ids and the sum of marks of a gallery's live items.

    A damaged vector is left out and logged: one bad row must neither stop the service nor be searched.

    Args:
        dimension: D; None if unknown, 0 to read ids and marks only.
    """
    query = select_vectors(fingerprint).where(items.c.gallery_id == gallery_id, IS_LIVE).order_by(items.c.id)
    parts, ids, digest = [np.empty((0, dimension), np.float32)] if dimension else [], list[int](), 0
    damaged: list[str] = []
    for rows in connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}).partitions():
        read = [(row, verified(row.external_id, row.vector, row.checksum, row.dtype)) for row in rows]
        sound = [(row, vector) for row, vector in read if vector is not None]
        damaged.extend(row.external_id for row, vector in read if vector is None)
        digest += sum(mark_of(row.checksum) for row, _ in sound)
        ids.extend(row.id for row, _ in sound)
        if dimension != 0 and sound:
            parts.append(np.stack([vector for _, vector in sound]))
    if damaged:
        _log_damaged(damaged, gallery_id)
    found = np.concatenate(parts) if parts else np.empty((0, 1), np.float32)
    return found, np.array(ids, np.int64), digest


def read_changed(
    connection: sa.Connection, fingerprint: str, after: int, upto: int, *, gallery_id: int | None = None
) -> tuple[Mapping[int, tuple[Sequence[Entry], Sequence[Entry]]], int]:
    """Return what was added and what was removed after a `seq`, up to another, by gallery.

    Damaged rows are left out and logged as above; the number of them is returned too.
    """
    # Not what was added and removed in between: the index never held it.
    is_live = sa.or_(IS_LIVE, items.c.deleted_seq > upto)
    added = sa.and_(items.c.added_seq > after, items.c.added_seq <= upto, is_live)
    removed = sa.and_(items.c.deleted_seq > after, items.c.deleted_seq <= upto, items.c.added_seq <= after)
    found: dict[int, tuple[list[Entry], list[Entry]]] = {}
    damaged = 0
    for at, condition in enumerate((added, removed)):
        query = select_vectors(fingerprint, items.c.gallery_id).where(condition).order_by(items.c.id)
        if gallery_id is not None:
            query = query.where(items.c.gallery_id == gallery_id)
        for row in connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}):
            # A removed one needs no vector: the index may hold it, whatever happened to the row since.
            vector = _NO_VECTOR
            if condition is added:
                read = verified(row.external_id, row.vector, row.checksum, row.dtype)
                if read is None:
                    _log_damaged([row.external_id], row.gallery_id)
                    damaged += 1
                    continue
                vector = read
            entry = Entry(item_id=row.id, vector=vector, mark=mark_of(row.checksum or b""))
            found.setdefault(row.gallery_id, ([], []))[at].append(entry)
    return found, damaged


def _log_damaged(names: Sequence[str], gallery_id: int) -> None:
    get_logger().error("vectors_damaged", gallery_row=gallery_id, count=len(names), items=names[:LOGGED])
