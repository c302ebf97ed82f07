"""Reads vectors from SQL for the indexes: all of a gallery, or what was added and removed after a `seq`."""

from collections.abc import Mapping, Sequence

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.stores.index.delta import Entry, mark_of
from app.stores.sql.tables import IS_LIVE, items, select_vectors, unpack

ROWS_AT_ONCE = 8192


def read_all(
    connection: sa.Connection, gallery_id: int, fingerprint: str, dimension: int | None
) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """Return vectors [N, D] float32, ascending ids and the sum of marks of a gallery's live items.

    Args:
        dimension: D; None if unknown, 0 to read ids and marks only.
    """
    query = select_vectors(fingerprint).where(items.c.gallery_id == gallery_id, IS_LIVE).order_by(items.c.id)
    parts, ids, digest = [np.empty((0, dimension), np.float32)] if dimension else [], list[int](), 0
    for rows in connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}).partitions():
        vectors = [unpack(row.vector, row.dtype) for row in rows]
        digest += sum(mark_of(row.external_id, vector) for row, vector in zip(rows, vectors, strict=True))
        ids.extend(row.id for row in rows)
        if dimension != 0:
            parts.append(np.stack(vectors))
    found = np.concatenate(parts) if parts else np.empty((0, 1), np.float32)
    return found, np.array(ids, np.int64), digest


def read_changed(
    connection: sa.Connection, fingerprint: str, after: int, upto: int, *, gallery_id: int | None = None
) -> Mapping[int, tuple[Sequence[Entry], Sequence[Entry]]]:
    """Return what was added and what was removed after a `seq`, up to another, by gallery."""
    # Not what was added and removed in between: the index never held it.
    is_live = sa.or_(IS_LIVE, items.c.deleted_seq > upto)
    added = sa.and_(items.c.added_seq > after, items.c.added_seq <= upto, is_live)
    removed = sa.and_(items.c.deleted_seq > after, items.c.deleted_seq <= upto, items.c.added_seq <= after)
    found: dict[int, tuple[list[Entry], list[Entry]]] = {}
    for at, condition in enumerate((added, removed)):
        query = select_vectors(fingerprint, items.c.gallery_id).where(condition).order_by(items.c.id)
        if gallery_id is not None:
            query = query.where(items.c.gallery_id == gallery_id)
        for row in connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}):
            vector = unpack(row.vector, row.dtype)
            entry = Entry(item_id=row.id, vector=vector, mark=mark_of(row.external_id, vector))
            found.setdefault(row.gallery_id, ([], []))[at].append(entry)
    return found
