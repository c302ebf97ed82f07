"""The SQL of a change of bundle: the next bundle's vectors beside the present ones, and one switch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.errors import Conflict
from app.stores.index.rows import read_all
from app.stores.records.class_sets import ClassPrompt, read_classes
from app.stores.sql import change_log, metadata
from app.stores.sql.database import Database
from app.stores.sql.tables import (
    VectorDtype,
    class_set_vectors,
    class_sets,
    galleries,
    item_vectors,
    items,
    pack,
    support_vectors,
    supports,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LackingImage:
    """A stored image without a vector of the bundle; `owner` is an item's row or a support's id."""

    owner: int | str
    sha256: str
    caption: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LackingClasses:
    """A class set without embeddings of the bundle; `version` detects a change meanwhile."""

    name: str
    version: int
    classes: Sequence[ClassPrompt]


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
            return _count_lacking(connection, self._fingerprint)

    def items(self, limit: int, after: int = 0) -> Sequence[LackingImage]:
        """Return live items that lack one, those after a row."""
        query = _items(self._fingerprint).where(items.c.id > after).order_by(items.c.id).limit(limit)
        with self._database.read(limit_s=None) as connection:
            return [
                LackingImage(owner=row.id, sha256=row.sha256, caption=row.caption) for row in connection.execute(query)
            ]

    def supports(self, limit: int, after: str = "") -> Sequence[LackingImage]:
        """Return supports that lack one, those after an id."""
        query = _supports(self._fingerprint).where(supports.c.id > after).order_by(supports.c.id).limit(limit)
        with self._database.read(limit_s=None) as connection:
            return [LackingImage(owner=row.id, sha256=row.sha256, caption=None) for row in connection.execute(query)]

    def class_sets(self) -> Sequence[LackingClasses]:
        """Return class sets that lack their embeddings."""
        with self._database.read(limit_s=None) as connection:
            rows = connection.execute(_class_sets(self._fingerprint)).all()
        return [LackingClasses(name=row.name, version=row.version, classes=read_classes(row)) for row in rows]

    def store_vectors(self, found: Sequence[tuple[LackingImage, NDArray[np.float32]]]) -> None:
        """Store vectors [D] of items and supports that still exist and still lack one."""
        with self._database.write() as connection:
            for one, vector in found:
                row: dict[str, object] = {"fingerprint": self._fingerprint}
                if isinstance(one.owner, int):
                    lacking: sa.Select[*tuple[Any, ...]] = _items(self._fingerprint).where(items.c.id == one.owner)
                    row |= {"item_id": one.owner, "dtype": self._dtype, "vector": pack(vector, self._dtype)}
                    table = item_vectors
                else:
                    lacking = _supports(self._fingerprint).where(supports.c.id == one.owner)
                    row |= {"support_id": one.owner, "vector": pack(vector)}
                    table = support_vectors
                # Deleted meanwhile, or stored by another run: skipped.
                if connection.execute(lacking).first() is not None:
                    connection.execute(sa.insert(table), row)

    def store_class_vectors(self, one: LackingClasses, vectors: NDArray[np.float32]) -> None:
        """Store embeddings [N, D] of a class set, unless it changed meanwhile."""
        lacking = _class_sets(self._fingerprint).where(
            class_sets.c.name == one.name, class_sets.c.version == one.version
        )
        with self._database.write() as connection:
            if connection.execute(lacking).first() is not None:
                row = {"name": one.name, "fingerprint": self._fingerprint, "vectors": pack(vectors)}
                connection.execute(sa.insert(class_set_vectors), row)

    def switch(self) -> bool:
        """Make the bundle the active one for all processes at once; False if something still lacks a vector."""
        with self._database.write() as connection:
            if _count_lacking(connection, self._fingerprint):  # in the transaction: nothing is written in between
                return False
            active = metadata.read(connection, metadata.FINGERPRINT)
            if active != self._fingerprint:
                _activate(connection, self._fingerprint, previous=active)
        return True


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
        lacking = _count_lacking(connection, previous)
        if lacking:
            raise Conflict(f"{lacking} entries were written since: run `vermouth reembed` with that bundle.")
        _activate(connection, previous, previous=active)
    return previous


def _activate(connection: sa.Connection, fingerprint: str, *, previous: str | None) -> None:
    if previous is not None:
        metadata.write(connection, metadata.PREVIOUS_FINGERPRINT, previous)
    metadata.write(connection, metadata.FINGERPRINT, fingerprint)
    # In the log, so that every process reloads its indexes.
    change_log.append(connection, "bundle.switch", fingerprint)


def _count_lacking(connection: sa.Connection, fingerprint: str) -> int:
    count = 0
    for query in (_items(fingerprint), _supports(fingerprint), _class_sets(fingerprint)):
        count += connection.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one()
    return count


def _items(fingerprint: str) -> sa.Select[int, str, str | None]:
    own = sa.and_(item_vectors.c.item_id == items.c.id, item_vectors.c.fingerprint == fingerprint)
    query = sa.select(items.c.id, items.c.sha256, items.c.caption).select_from(items.outerjoin(item_vectors, own))
    return query.where(items.c.deleted_seq.is_(None), item_vectors.c.item_id.is_(None))


def _supports(fingerprint: str) -> sa.Select[str, str]:
    own = sa.and_(support_vectors.c.support_id == supports.c.id, support_vectors.c.fingerprint == fingerprint)
    query = sa.select(supports.c.id, supports.c.sha256).select_from(supports.outerjoin(support_vectors, own))
    return query.where(support_vectors.c.support_id.is_(None))


def _class_sets(fingerprint: str) -> sa.Select[str, int, Any]:
    own = sa.and_(class_set_vectors.c.name == class_sets.c.name, class_set_vectors.c.fingerprint == fingerprint)
    columns = (class_sets.c.name, class_sets.c.version, class_sets.c.classes)
    query = sa.select(*columns).select_from(class_sets.outerjoin(class_set_vectors, own))
    return query.where(class_set_vectors.c.name.is_(None))
