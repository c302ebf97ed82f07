"""What SQL holds for the vector indexes: all of a gallery, or what came and went after a `seq`."""

from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.stores.index.delta import Entry, Removal, mark_of
from app.stores.sql.database import Database
from app.stores.sql.tables import galleries, item_vectors, items, unpack

ROWS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """All vectors of a gallery, [N, D] float32, under ascending row ids."""

    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]

    def near(self, item_id: int, k: int) -> set[int]:
        """Rows of the k items nearest to one of them, without itself."""
        at = int(np.searchsorted(self.ids, item_id))
        scores = self.vectors @ self.vectors[at]
        scores[at] = -np.inf
        return set(self.ids[np.argpartition(-scores, k)[:k]].tolist())


def read_exact(database: Database, gallery: str, fingerprint: str) -> Exact:
    """A gallery's vectors of a bundle, active or not; none where the gallery is gone."""
    with database.read(limit_s=None) as connection:
        key = connection.execute(sa.select(galleries.c.id).where(galleries.c.name == gallery)).scalar_one_or_none()
        vectors, ids, _ = read_all(connection, key or 0, fingerprint, None)
    return Exact(ids=ids, vectors=vectors)


def read_all(
    connection: sa.Connection, gallery_id: int, fingerprint: str, dimension: int | None
) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """Vectors [N, D], ascending ids and the sum of marks of a gallery's live items; D 0 keeps no vectors."""
    query = _vectors(fingerprint).where(items.c.gallery_id == gallery_id, items.c.deleted_seq.is_(None))
    parts, ids, digest = [np.empty((0, dimension), np.float32)] if dimension else [], list[int](), 0
    for rows in connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}).partitions():
        vectors = [unpack(row.vector, row.dtype) for row in rows]
        digest += sum(mark_of(row.external_id, vector) for row, vector in zip(rows, vectors, strict=True))
        ids.extend(row.id for row in rows)
        if dimension != 0:
            parts.append(np.stack(vectors))
    found = np.concatenate(parts) if parts else np.empty((0, 1), np.float32)
    return found, np.array(ids, np.int64), digest


def read_added(
    connection: sa.Connection, fingerprint: str, after: int, gallery_id: int | None = None, upto: int | None = None
) -> dict[int, list[Entry]]:
    """Items written after a `seq` that are still there (as of `upto`), by gallery."""
    found: dict[int, list[Entry]] = {}
    is_live: sa.ColumnElement[bool] = items.c.deleted_seq.is_(None)
    condition = _within(items.c.added_seq, after, upto)
    if upto is not None:
        is_live = sa.or_(is_live, items.c.deleted_seq > upto)
    query = _vectors(fingerprint).where(condition, is_live, _of(gallery_id))
    for row in connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}):
        vector = unpack(row.vector, row.dtype)
        entry = Entry(item_id=row.id, vector=vector, mark=mark_of(row.external_id, vector))
        found.setdefault(row.gallery_id, []).append(entry)
    return found


def read_removed(
    connection: sa.Connection, fingerprint: str, after: int, gallery_id: int | None = None, upto: int | None = None
) -> dict[int, list[Removal]]:
    """Items that were there at a `seq` and were deleted or replaced since (up to `upto`), by gallery."""
    found: dict[int, list[Removal]] = {}
    condition = sa.and_(_within(items.c.deleted_seq, after, upto), items.c.added_seq <= after, _of(gallery_id))
    query = _vectors(fingerprint).where(condition)
    for row in connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}):
        mark = mark_of(row.external_id, unpack(row.vector, row.dtype))
        found.setdefault(row.gallery_id, []).append(Removal(item_id=row.id, mark=mark))
    return found


def _vectors(fingerprint: str) -> sa.Select[tuple[int, int, str, str, bytes]]:
    joined = items.join(
        item_vectors, sa.and_(item_vectors.c.item_id == items.c.id, item_vectors.c.fingerprint == fingerprint)
    )
    columns = (items.c.id, items.c.gallery_id, items.c.external_id, item_vectors.c.dtype, item_vectors.c.vector)
    return sa.select(*columns).select_from(joined).order_by(items.c.id)


def _within(column: sa.Column[int], after: int, upto: int | None) -> sa.ColumnElement[bool]:
    return column > after if upto is None else sa.and_(column > after, column <= upto)


def _of(gallery_id: int | None) -> sa.ColumnElement[bool]:
    return sa.true() if gallery_id is None else items.c.gallery_id == gallery_id
