"""The SQL of a change of bundle: the next bundle's vectors beside the present ones, and one switch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.errors import Conflict
from app.stores.index.rows import read_all
from app.stores.records.class_sets import ClassSet, class_set_of
from app.stores.sql import change_log, metadata
from app.stores.sql.checksums import sealed, sealed_rows
from app.stores.sql.database import Database
from app.stores.sql.tables import (
    IS_LIVE,
    VectorDtype,
    class_set_vectors,
    class_sets,
    galleries,
    item_vectors,
    items,
    support_vectors,
    supports,
)

_Lacking = sa.Select[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LackingImage:
    """A stored image without a vector of the bundle; `owner` is an item's row or a support's id."""

    owner: int | str
    name: str
    sha256: str
    caption: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactVectors:
    """All vectors of a gallery, [N, D] float32, under ascending row ids."""

    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]

    def near(self, item_id: int, k: int) -> set[int]:
        """Return the rows of the k items nearest to one of them, without itself."""
        at = int(np.searchsorted(self.ids, item_id))
        scores = self.vectors @ self.vectors[at]
        scores[at] = -np.inf  # not its own neighbour
        return set(self.ids[np.argpartition(-scores, k)[:k]].tolist())


class Reembedding:
    """What one bundle still lacks; every method blocks.

    Args:
        fingerprint: of the bundle to change to.
        dtype: how its vectors are stored.
    """

    def __init__(self, database: Database, *, fingerprint: str, dtype: VectorDtype = "fp32") -> None:
        self._database = database
        self._fingerprint = fingerprint
        self._dtype: VectorDtype = dtype

    def active(self) -> str | None:
        """Return the active bundle's fingerprint."""
        with self._database.read(limit_s=None) as connection:
            return metadata.read(connection, metadata.FINGERPRINT)

    def galleries(self) -> Sequence[str]:
        """Return the names of all galleries."""
        with self._database.read(limit_s=None) as connection:
            return connection.execute(sa.select(galleries.c.name).order_by(galleries.c.name)).scalars().all()

    def vectors(self, gallery: str, fingerprint: str) -> ExactVectors:
        """Return a gallery's vectors of a bundle, active or not; none if the gallery is gone."""
        with self._database.read(limit_s=None) as connection:
            key = connection.execute(sa.select(galleries.c.id).where(galleries.c.name == gallery)).scalar_one_or_none()
            vectors, ids, _ = read_all(connection, key or 0, fingerprint, None)
        return ExactVectors(ids=ids, vectors=vectors)

    def count(self) -> int:
        """Return how many items, supports and class sets lack a vector of the bundle."""
        with self._database.read(limit_s=None) as connection:
            return sum(count_lacking(connection, self._fingerprint).values())

    def items(self, limit: int, after: int = 0) -> Sequence[LackingImage]:
        """Return live items that lack one, those after a row."""
        return self._images(_items(self._fingerprint).where(items.c.id > after).order_by(items.c.id).limit(limit))

    def supports(self, limit: int, after: str = "") -> Sequence[LackingImage]:
        """Return supports that lack one, those after an id."""
        lacking = _supports(self._fingerprint).where(supports.c.id > after)
        return self._images(lacking.order_by(supports.c.id).limit(limit))

    def class_sets(self) -> Sequence[ClassSet]:
        """Return class sets that lack their embeddings."""
        with self._database.read(limit_s=None) as connection:
            return [class_set_of(row) for row in connection.execute(_class_sets(self._fingerprint))]

    def store_vectors(self, found: Sequence[tuple[LackingImage, NDArray[np.float32]]]) -> None:
        """Store vectors [D] of items and supports that still exist and still lack one."""
        with self._database.write() as connection:
            for one, vector in found:
                row: dict[str, object] = {"fingerprint": self._fingerprint}
                if isinstance(one.owner, int):
                    lacking = _items(self._fingerprint).where(items.c.id == one.owner)
                    row |= {"item_id": one.owner, "dtype": self._dtype, **sealed(one.name, vector, self._dtype)}
                    table = item_vectors
                else:
                    lacking = _supports(self._fingerprint).where(supports.c.id == one.owner)
                    row |= {"support_id": one.owner, **sealed(one.name, vector)}
                    table = support_vectors
                # Deleted meanwhile, or stored by another run: skipped.
                if connection.execute(lacking).first() is not None:
                    connection.execute(sa.insert(table), row)

    def store_class_vectors(self, one: ClassSet, vectors: NDArray[np.float32]) -> None:
        """Store embeddings [N, D] of a class set, unless it changed meanwhile."""
        lacking = _class_sets(self._fingerprint).where(
            class_sets.c.name == one.name, class_sets.c.version == one.version
        )
        with self._database.write() as connection:
            if connection.execute(lacking).first() is not None:
                row = {"name": one.name, "fingerprint": self._fingerprint, **sealed_rows(one.name, vectors)}
                connection.execute(sa.insert(class_set_vectors), row)

    def switch(self) -> bool:
        """Make the bundle the active one for all processes at once; False if something still lacks a vector."""
        with self._database.write() as connection:
            # In the transaction: nothing is written in between.
            if any(count_lacking(connection, self._fingerprint).values()):
                return False
            active = metadata.read(connection, metadata.FINGERPRINT)
            if active != self._fingerprint:
                _activate(connection, self._fingerprint, previous=active)
        return True

    def _images(self, query: _Lacking) -> Sequence[LackingImage]:
        with self._database.read(limit_s=None) as connection:
            return [LackingImage(**row) for row in connection.execute(query).mappings()]


def roll_back(database: Database) -> str:
    """Switch back to the bundle before the last switch; returns its fingerprint.

    Raises:
        Conflict: there was none, or something written since has no vector of it.
    """
    with database.write() as connection:
        active = metadata.read(connection, metadata.FINGERPRINT)
        previous = metadata.read(connection, metadata.PREVIOUS_FINGERPRINT)
        if previous is None or active is None:
            raise Conflict("There was no other bundle before.")
        lacking = sum(count_lacking(connection, previous).values())
        if lacking:
            raise Conflict(f"{lacking} entries were written since: run `vermouth reembed` with that bundle.")
        _activate(connection, previous, previous=active)
    return previous


def count_lacking(connection: sa.Connection, fingerprint: str) -> Mapping[str, int]:
    """Return how many items, supports and class sets lack a vector of a bundle, by kind."""
    queries = {"items": _items, "supports": _supports, "class sets": _class_sets}
    count = sa.select(sa.func.count())
    return {
        kind: connection.execute(count.select_from(query(fingerprint).subquery())).scalar_one()
        for kind, query in queries.items()
    }


def _activate(connection: sa.Connection, fingerprint: str, *, previous: str | None) -> None:
    if previous is not None:
        metadata.write(connection, metadata.PREVIOUS_FINGERPRINT, previous)
    metadata.write(connection, metadata.FINGERPRINT, fingerprint)
    # In the log, so that every process reloads its indexes.
    change_log.append(connection, "bundle.switch", fingerprint)


def _items(fingerprint: str) -> _Lacking:
    columns = (items.c.id.label("owner"), items.c.external_id.label("name"), items.c.sha256, items.c.caption)
    return _lacking(item_vectors.c.item_id, fingerprint, columns).where(IS_LIVE)


def _supports(fingerprint: str) -> _Lacking:
    columns = (supports.c.id.label("owner"), supports.c.id.label("name"), supports.c.sha256)
    return _lacking(support_vectors.c.support_id, fingerprint, columns)


def _class_sets(fingerprint: str) -> _Lacking:
    return _lacking(class_set_vectors.c.name, fingerprint, [*class_sets.c])


def _lacking(key: sa.Column[Any], fingerprint: str, columns: Sequence[sa.ColumnElement[Any]]) -> _Lacking:
    """Return the query for rows that no vector of a bundle refers to by `key`."""
    (owner,) = (reference.column for reference in key.foreign_keys)
    own = sa.and_(key == owner, key.table.c.fingerprint == fingerprint)
    return sa.select(*columns).select_from(owner.table.outerjoin(key.table, own)).where(key.is_(None))
